"""API keys: a file of hashes, read again when it changes. Keys themselves are never kept, compared or logged.

A line is `ROLE NAME SHA256 [requests=N] [tokens=N]`, ROLE `user` or `admin`, SHA256 in hex of the key, N what the name
may have at once; `#` begins a comment. Admin keys may do everything, user keys may not see metrics or `/admin`.
"""

import hashlib
import hmac
import logging
from dataclasses import dataclass
from pathlib import Path

from outrider.refactor.errors import InputError
from outrider.serve.errors import ApiError

_log = logging.getLogger("outrider.serve")
KEYS_MAX = 10_000
CAPS = {"requests": "requests_max", "tokens": "tokens_max"}
CAP_MAX = 10**12


@dataclass(frozen=True)
class Key:
    role: str
    name: str
    digest: bytes
    requests_max: int = 0  # 0: no cap
    tokens_max: int = 0


class Keys:
    """Looks at the file's date on each request; a change that cannot be read keeps the old keys, with a warning."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._keys = read_keys(path)
        self._seen = self._refused = _stamp(path)

    def check(self, authorization: str | None, *, admin: bool) -> Key:
        """The key of an `Authorization: Bearer KEY` header.

        Raises:
            ApiError: 401 without a known key, 403 with a user's key where an admin's is needed.
        """
        self._reload()
        scheme, _, secret = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not secret:
            raise ApiError(401, "Give an API key: `Authorization: Bearer KEY`.", code="missing_api_key")
        digest = hashlib.sha256(secret.strip().encode()).digest()
        found = None
        for key in self._keys:  # all of them, whatever is found: the time tells nothing
            if hmac.compare_digest(key.digest, digest):
                found = key
        if found is None:
            raise ApiError(401, "The API key is not known.", code="invalid_api_key")
        if admin and found.role != "admin":
            raise ApiError(403, "This needs an admin key.", code="admin_key_required")
        return found

    def _reload(self) -> None:
        stamp = _stamp(self.path)
        if stamp == self._seen:
            return
        try:
            self._keys = read_keys(self.path)
            _log.info("%d API keys read from %s", len(self._keys), self.path)
        except InputError as error:
            if stamp != self._refused:
                _log.warning("the changed API keys are not used: %s", error)
            self._refused = stamp
            if isinstance(error.__context__, OSError):  # which may pass: the next request looks again
                return
        self._seen = stamp


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def read_keys(path: Path) -> list[Key]:
    """Raises InputError E_KEYS for a file that is missing, malformed or without a key."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError("E_KEYS", path, "file", str(error)[:120], "a text file of API keys") from None
    keys = []
    for number, line in enumerate(lines, 1):
        words = line.split("#")[0].split()
        if not words:
            continue
        if len(words) < 3 or words[0] not in ("user", "admin"):
            raise InputError("E_KEYS", path, f"line {number}", f"{len(words)} words", "user|admin NAME SHA256 [CAPS]")
        try:
            digest = bytes.fromhex(words[2])
        except ValueError:
            digest = b""
        if len(digest) != 32:
            raise InputError("E_KEYS", path, f"line {number}", "no SHA-256", "64 hex digits")
        keys.append(Key(words[0], words[1], digest, **_caps(path, number, words[3:])))
    if not 1 <= len(keys) <= KEYS_MAX:
        raise InputError("E_KEYS", path, "keys", str(len(keys)), f"1 to {KEYS_MAX}")
    return keys


def _caps(path: Path, number: int, words: list[str]) -> dict[str, int]:
    caps = {}
    for word in words:
        name, _, value = word.partition("=")
        known = name in CAPS and CAPS[name] not in caps
        digits = value.isascii() and value.isdigit() and len(value) <= 20
        if not known or not digits or not 1 <= int(value) <= CAP_MAX:
            expected = f"requests=N or tokens=N, each once, N 1 to {CAP_MAX}"
            raise InputError("E_KEYS", path, f"line {number}", repr(word[:40]), expected)
        caps[CAPS[name]] = int(value)
    return caps
