"""Text files as documents, and the split that each document belongs to."""

import bz2
import gzip
import hashlib
import json
import lzma
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from outrider.refactor.errors import InputError

SPLITS = ("train", "valid", "test")
CHUNK_BYTES = 16 * 1024
# Of 100 hash values: below 90 train, below 95 valid, the rest test.
_BOUNDS = (90, 95, 100)

_OPENERS = {".xz": lzma.open, ".bz2": bz2.open, ".gz": gzip.open}
_FORMATS = (".txt", ".jsonl")


@dataclass(frozen=True)
class Document:
    """`file` is relative to the root with `/` between folders; `index` counts from 0 inside the file."""

    file: str
    index: int
    text: str


def format_of(name: str) -> str | None:
    """`.txt` or `.jsonl`, whatever compression ends the name; None for a file that is not read."""
    path = Path(name.lower())
    if path.suffix in _OPENERS:
        path = path.with_suffix("")
    return path.suffix if path.suffix in _FORMATS else None


def read_documents(root: Path, file: str) -> Iterator[Document]:
    """The documents of one file: a line each in `.jsonl` (field `text`), chunks of at most 16 KiB in `.txt`.

    Bytes that are no UTF-8 become U+FFFD, and so do halves of characters. Empty documents are passed over, and count in
    the index.

    Raises:
        InputError: E_DATA when the file cannot be read or decompressed, or a line of `.jsonl` has no text.
    """
    path = root / file
    pieces = _json_lines if format_of(file) == ".jsonl" else _chunks
    try:
        with _open(path) as stream:
            for index, text in enumerate(pieces(path, stream)):
                if text.strip():
                    yield Document(file, index, text)
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise InputError("E_DATA", path, "content", str(error) or type(error).__name__, "a readable file") from error


def hash_of(file: str, index: int) -> int:
    """A 64-bit number that depends on the name and the index only, so that a corpus can grow without reshuffling."""
    digest = hashlib.sha256(f"{file}\0{index}".encode()).digest()
    return int.from_bytes(digest[:8], "big")


def split_of(file: str, index: int) -> str:
    """`train`, `valid` or `test`, 90/5/5."""
    bucket = hash_of(file, index) % 100
    return next(split for split, bound in zip(SPLITS, _BOUNDS, strict=True) if bucket < bound)


def _open(path: Path) -> IO[bytes]:
    opener = _OPENERS.get(path.suffix.lower())
    return opener(path, "rb") if opener else path.open("rb")


def _chunks(_: Path, stream: IO[bytes]) -> Iterator[str]:
    """Cuts after the last line end inside the limit, else between two characters."""
    rest = b""
    while block := stream.read(CHUNK_BYTES - len(rest)):
        rest += block
        if len(rest) == CHUNK_BYTES:
            cut = rest.rfind(b"\n") + 1 or _character_end(rest)
            yield rest[:cut].decode("utf-8", errors="replace")
            rest = rest[cut:]
    if rest:
        yield rest.decode("utf-8", errors="replace")


def _character_end(data: bytes) -> int:
    """The largest length, at most three bytes short, at which no UTF-8 character is cut."""
    for back in range(1, 4):
        lead = data[-back]
        if lead & 0xC0 != 0x80:
            length = 4 if lead >= 0xF0 else 3 if lead >= 0xE0 else 2 if lead >= 0xC0 else 1
            return len(data) - back if length > back else len(data)
    return len(data)


def _json_lines(path: Path, stream: IO[bytes]) -> Iterator[str]:
    for number, line in enumerate(stream, 1):
        text = _text_of(line) if line.strip() else ""
        if text is None:
            raise InputError("E_DATA", path, f"line {number}", repr(line[:60]), 'an object with a string "text"')
        yield text


def _text_of(line: bytes) -> str | None:
    try:
        text = json.loads(line.decode("utf-8-sig", errors="replace"))["text"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    # An escape may name half a character, which no file can hold.
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace") if isinstance(text, str) else None
