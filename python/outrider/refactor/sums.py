"""Checksums of an imported folder, as `sha256sum` writes and reads them: what was damaged since is not read."""

import hashlib
from pathlib import Path

from outrider.refactor.atomic import write_file
from outrider.refactor.errors import InputError

SUMS = "outrider_import.sha256"


def write_sums(folder: Path) -> None:
    """Of every file of `folder`."""
    names = sorted(path.name for path in folder.iterdir() if path.is_file() and path.name != SUMS)
    write_file(folder / SUMS, "".join(f"{sha256_of(folder / name)}  {name}\n" for name in names))


def check_sums(folder: Path) -> None:
    """Raises InputError E_MODEL for a file that is not as it was written. A folder without checksums is taken."""
    path = folder / SUMS
    if not path.is_file():
        return
    try:
        rows = [line.split("  ", 1) for line in path.read_text("utf-8").splitlines()]
        named = rows and all(len(row) == 2 and len(row[0]) == 64 and Path(row[1]).name == row[1] for row in rows)
    except (OSError, ValueError):
        named = False
    if not named:
        raise InputError("E_MODEL", path, "checksums", "something else", "lines as of sha256sum")
    for expected, name in rows:
        if (found := sha256_of(folder / name)) != expected:
            meant = f"{expected}; if the change was meant, remove {SUMS}"
            raise InputError("E_MODEL", folder / name, "sha256", found, meant)


def sha256_of(path: Path, code: str = "E_MODEL") -> str:
    """Hex digits of a file's checksum. Raises InputError with `code` for one that cannot be read."""
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise InputError(code, path, "file", error.strerror or str(error), "a readable file") from None
