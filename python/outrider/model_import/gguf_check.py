"""Checks a GGUF file before a reader that trusts it sees it: counts and lengths bounded, every offset inside the file.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Versions 2 and 3, little-endian.
"""

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path

from outrider.refactor.errors import InputError

CODE = "E_GGUF"
ENTRIES_MAX = 1 << 16  # metadata fields, and tensors
ARRAY_MAX = 1 << 24  # elements
NAME_BYTES_MAX = 1 << 10
TEXT_BYTES_MAX = 1 << 24
DIMENSIONS_MAX = 4
ALIGNMENT_MAX = 1 << 16

_SCALAR_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True)
class TensorPlace:
    """One tensor of the file: where its bytes lie, counted from the start of the tensor data."""

    name: str
    shape: tuple[int, ...]  # innermost first, as stored
    kind: int
    offset: int


class _Cursor:
    """Reads forward through the file; every step is checked against its end."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.at = path, data, 0
        self.place = "header"

    def fail(self, found: str, expected: str) -> InputError:
        return InputError(CODE, self.path, self.place, found, expected)

    def skip(self, count: int) -> int:
        start = self.at
        if count > len(self.data) - start:
            raise self.fail(f"the end of the file after {len(self.data) - start} bytes", f"{count} bytes")
        self.at += count
        return start

    def number(self, form: str) -> int:
        return struct.unpack_from(form, self.data, self.skip(struct.calcsize(form)))[0]

    def count(self, what: str, limit: int, form: str = "<Q") -> int:
        value = self.number(form)
        if value > limit:
            raise self.fail(f"{value} {what}", f"at most {limit}")
        return value

    def text(self, limit: int) -> str:
        length = self.count("bytes of text", limit)
        start = self.skip(length)
        try:
            return self.data[start : start + length].decode("utf-8")
        except UnicodeDecodeError:
            raise self.fail("text that is not UTF-8", "UTF-8") from None


def check_gguf(path: Path) -> dict[str, TensorPlace]:
    """Walks through the whole header of the file at `path`; -> its tensors by name.

    Raises:
        InputError: E_GGUF, naming the field or tensor; E_READ when the file cannot be read.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _walk(_Cursor(path, data))
    except OSError as error:
        raise InputError("E_READ", path, "file", error.strerror or str(error), "a GGUF file") from error
    except ValueError as error:  # an empty file cannot be mapped
        raise InputError(CODE, path, "file", "0 bytes", "a GGUF file") from error


def _walk(cursor: _Cursor) -> dict[str, TensorPlace]:
    magic = cursor.data[cursor.skip(4) : 4]
    if magic != b"GGUF":
        raise cursor.fail(f"the magic bytes {magic!r}", "b'GGUF'")
    version = cursor.number("<I")
    if version not in (2, 3):
        raise cursor.fail(f"version {version}", "2 or 3, little-endian")
    tensor_count = cursor.count("tensors", ENTRIES_MAX)
    field_count = cursor.count("metadata fields", ENTRIES_MAX)
    alignment = 32
    names: set[str] = set()
    for index in range(field_count):
        cursor.place = f"metadata field {index}"
        name = cursor.text(NAME_BYTES_MAX)
        cursor.place = name
        if name in names:
            raise cursor.fail("the field a second time", "it once")
        names.add(name)
        start, kind = cursor.at, cursor.number("<I")
        _skip_value(cursor, kind, nested=False)
        if name == "general.alignment":
            alignment = struct.unpack_from("<I", cursor.data, start + 4)[0] if kind == 4 else 0
            if not 0 < alignment <= ALIGNMENT_MAX or alignment & (alignment - 1):
                raise cursor.fail(f"alignment {alignment}", f"a power of two up to {ALIGNMENT_MAX}, as uint32")
    tensors: dict[str, TensorPlace] = {}
    for index in range(tensor_count):
        cursor.place = f"tensor {index}"
        tensor = _read_tensor(cursor)
        if tensor.name in tensors:
            raise cursor.fail("the tensor a second time", "it once")
        tensors[tensor.name] = tensor
    _check_places(cursor, list(tensors.values()), alignment)
    return tensors


def _skip_value(cursor: _Cursor, kind: int, *, nested: bool) -> None:
    if kind in _SCALAR_BYTES:
        cursor.skip(_SCALAR_BYTES[kind])
    elif kind == _STRING:
        cursor.text(TEXT_BYTES_MAX)
    elif kind == _ARRAY and not nested:
        element = cursor.number("<I")
        count = cursor.count("elements", ARRAY_MAX)
        if element in _SCALAR_BYTES:
            cursor.skip(count * _SCALAR_BYTES[element])
            return
        for _ in range(count):
            _skip_value(cursor, element, nested=True)
    else:
        raise cursor.fail(f"value type {kind}", "a number, a text or a flat list")


def _read_tensor(cursor: _Cursor) -> TensorPlace:
    name = cursor.text(NAME_BYTES_MAX)
    cursor.place = name
    rank = cursor.count("dimensions", DIMENSIONS_MAX, "<I")
    shape = tuple(cursor.number("<Q") for _ in range(rank))
    if not shape or 0 in shape:
        raise cursor.fail(f"shape {list(shape)}", "at least one dimension, none of them 0")
    return TensorPlace(name, shape, cursor.number("<I"), cursor.number("<Q"))


def _check_places(cursor: _Cursor, tensors: list[TensorPlace], alignment: int) -> None:
    from gguf.constants import GGML_QUANT_SIZES

    data_begin = -(-cursor.at // alignment) * alignment
    available = len(cursor.data) - data_begin
    sizes = {int(kind): size for kind, size in GGML_QUANT_SIZES.items()}
    end_before, before = 0, ""
    for tensor in sorted(tensors, key=lambda tensor: tensor.offset):
        cursor.place = tensor.name
        if tensor.kind not in sizes:
            raise cursor.fail(f"tensor type {tensor.kind}", "a type that the gguf package knows")
        block, block_bytes = sizes[tensor.kind]
        elements = 1
        for size in tensor.shape:
            elements *= size
        if tensor.shape[0] % block:
            raise cursor.fail(f"rows of {tensor.shape[0]}", f"a multiple of {block}")
        if tensor.offset % alignment:
            raise cursor.fail(f"offset {tensor.offset}", f"a multiple of {alignment}")
        if tensor.offset < end_before:
            raise cursor.fail(f"offset {tensor.offset}", f"at least {end_before}, the end of {before}")
        end_before, before = tensor.offset + elements // block * block_bytes, tensor.name
        if end_before > available:
            raise cursor.fail(f"data up to byte {end_before}", f"at most {available}, the end of the file")
