"""Reads what `outrider data prepare` wrote."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from outrider.refactor.errors import InputError

_DTYPES = {"uint16": "<u2", "uint32": "<u4"}


@dataclass(frozen=True)
class Split:
    """`tokens` is a read-only memory map; document i is `tokens[starts[i]:starts[i + 1]]`, the last one to the end.

    `text_bytes[i]` is the size of document i as UTF-8.
    """

    tokens: np.ndarray
    starts: list[int]
    text_bytes: list[int]

    def documents(self) -> list[np.ndarray]:
        ends = [*self.starts[1:], len(self.tokens)]
        return [self.tokens[start:end] for start, end in zip(self.starts, ends, strict=True)]


@dataclass(frozen=True)
class DataSet:
    folder: Path
    vocab: int
    domains: list[str]
    unseen: list[str]
    splits: dict[str, dict[str, Split]]
    tokenizer_sha256: str


def load_data(folder: Path) -> DataSet:
    """Opens a prepared data set and checks every file's size and every document's offset.

    Raises:
        InputError: E_DATA naming the field or file that does not fit.
    """
    folder = Path(folder)
    path = folder / "data.json"
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        version, vocab, dtype = summary["format"], summary["vocab"], summary["dtype"]
        names = [*summary["domains"], *summary.get("unseen", [])]
        rows = {name: summary["splits"][name] for name in names}
        sha256 = summary["tokenizer_sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError("E_DATA", path, "header", repr(error), "the output of `outrider data prepare`") from error
    if version != 1:
        raise InputError("E_DATA", path, "format", repr(version), "1")
    if dtype not in _DTYPES:
        raise InputError("E_DATA", path, "dtype", repr(dtype), " or ".join(_DTYPES))
    splits = {
        name: {split: _open_split(folder, name, split, row, np.dtype(_DTYPES[dtype])) for split, row in group.items()}
        for name, group in rows.items()
    }
    return DataSet(folder, vocab, summary["domains"], summary.get("unseen", []), splits, sha256)


def _open_split(folder: Path, name: str, split: str, row: dict, dtype: np.dtype) -> Split:
    path = folder / "tokens" / f"{name}.{split}.bin"
    size = path.stat().st_size if path.is_file() else -1
    if not isinstance(row, dict) or not {"tokens", "documents", "document_bytes"} <= row.keys():
        expected_keys = "tokens, documents and document_bytes"
        raise InputError("E_DATA", folder / "data.json", f"{name}.{split}", repr(row)[:60], expected_keys)
    expected = row["tokens"] * dtype.itemsize
    if size != expected:
        found = "no file" if size < 0 else f"{size} bytes"
        raise InputError("E_DATA", path, "tokens", found, f"{expected} bytes")
    starts = row["documents"]
    if not starts or starts[0] != 0 or starts[-1] >= row["tokens"] or sorted(set(starts)) != starts:
        raise InputError("E_DATA", folder / "data.json", f"{name}.{split}.documents", "these offsets", "rising from 0")
    sizes = row["document_bytes"]
    if len(sizes) != len(starts):
        found = f"{len(sizes)} sizes of {len(starts)} documents"
        raise InputError("E_DATA", folder / "data.json", f"{name}.{split}.document_bytes", found, "one each")
    return Split(np.memmap(path, dtype, "r"), starts, sizes)
