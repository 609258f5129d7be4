"""`outrider data prepare`: text files -> token files per domain and split. The format is docs/formats/data.md."""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np

from outrider.refactor.atomic import atomic_folder, write_file
from outrider.refactor.documents import SPLITS, Document, hash_of, read_documents, split_of
from outrider.refactor.domains import DomainFiles
from outrider.refactor.errors import InputError
from outrider.refactor.tokenizer import ModelTokenizer

FORMAT = 1
CALIBRATION_TOKENS = 65_536
UNSEEN_TOKENS = 262_144
_BATCH = 64

Progress = Callable[[str, int], None]


@dataclass(frozen=True)
class Options:
    """`max_tokens` and `unseen_tokens` bound a domain over all its splits, rounded up to a whole document.

    `min_train_tokens` is what calibration needs of each domain. `separator` is a token written after each document.
    """

    max_tokens: int | None = None
    unseen_tokens: int | None = UNSEEN_TOKENS
    min_train_tokens: int = CALIBRATION_TOKENS
    separator: str | None = None


@dataclass
class _Split:
    """One open token file."""

    stream: BinaryIO
    tokens: int = 0
    documents: list[int] = field(default_factory=list)
    document_bytes: list[int] = field(default_factory=list)

    def append(self, ids: np.ndarray, text_bytes: int) -> None:
        self.stream.write(ids.tobytes())
        self.documents.append(self.tokens)
        self.tokens += ids.size
        self.document_bytes.append(text_bytes)

    def row(self) -> dict[str, object]:
        return {"tokens": self.tokens, "documents": self.documents, "document_bytes": self.document_bytes}


def prepare(
    files: DomainFiles,
    tokenizer: ModelTokenizer,
    out: Path,
    options: Options = Options(),
    *,
    force: bool = False,
    progress: Progress = lambda domain, tokens: None,
) -> dict[str, object]:
    """Writes `OUT/tokens/<domain>.<split>.bin` and `OUT/data.json`; returns what data.json holds.

    `progress` is called with a domain and the tokens just written for it.

    Raises:
        InputError: E_DOMAIN for an empty or small domain; E_DATA, E_VOCAB, E_EXISTS and E_DISK as their owners say.
    """
    separator = tokenizer.id_of(options.separator) if options.separator else None
    dtype = np.dtype("<u2" if tokenizer.vocab <= 65_536 else "<u4")
    plans = {name: _plan(files, name) for name in files.all}
    with atomic_folder(out, force=force, needed_bytes=_needed_bytes(files, plans, options, dtype)) as folder:
        (folder / "tokens").mkdir()
        splits = {}
        for name, plan in plans.items():
            writer = _DomainWriter(files, name, tokenizer, options, dtype, separator)
            splits[name] = writer.write(plan, folder / "tokens", progress)
        summary = {
            "format": FORMAT,
            "vocab": tokenizer.vocab,
            "dtype": "uint16" if dtype.itemsize == 2 else "uint32",
            "domains": list(files.domains),
            "unseen": list(files.unseen),
            "separator": separator,
            "splits": splits,
            "tokenizer_sha256": tokenizer.sha256,
            "max_tokens": options.max_tokens,
            "sources": sources(files),
        }
        write_file(folder / "data.json", json.dumps(summary, separators=(",", ":")) + "\n")
    return summary


@dataclass(frozen=True)
class _Plan:
    """Where each document of a domain goes; known before a token is written, so that no split is left empty."""

    split: dict[tuple[str, int], str]
    text_bytes: int


def _plan(files: DomainFiles, name: str) -> _Plan:
    """Splits by hash. A split that the hash leaves empty gets the train document with the lowest hash."""
    sizes = {
        (document.file, document.index): len(document.text.encode())
        for file in files.all[name]
        for document in read_documents(files.root, file)
    }
    if name in files.unseen:
        if not sizes:
            raise InputError("E_DOMAIN", files.root, name, "no document", "at least 1")
        return _Plan(dict.fromkeys(sizes, "test"), sum(sizes.values()))
    if len(sizes) < len(SPLITS):
        found = f"{len(sizes)} documents in {len(files.all[name])} files"
        raise InputError("E_DOMAIN", files.root, name, found, f"at least {len(SPLITS)}, one a split")
    split = {key: split_of(*key) for key in sizes}
    for empty in (one for one in SPLITS if one not in split.values()):
        fullest = max(SPLITS, key=lambda one: sum(value == one for value in split.values()))
        moved = min((key for key, value in split.items() if value == fullest), key=lambda key: hash_of(*key))
        split[moved] = empty
    return _Plan(split, sum(sizes.values()))


class _DomainWriter:
    """Tokenises one domain, a document from each of its files in turn."""

    def __init__(
        self,
        files: DomainFiles,
        name: str,
        tokenizer: ModelTokenizer,
        options: Options,
        dtype: np.dtype,
        separator: int | None,
    ) -> None:
        self._files, self._name, self._tokenizer = files, name, tokenizer
        self._dtype = dtype
        self._tail = [] if separator is None else [separator]
        self._limit = options.unseen_tokens if name in files.unseen else options.max_tokens
        self._needed = 1 if name in files.unseen else options.min_train_tokens

    def write(self, plan: _Plan, folder: Path, progress: Progress) -> dict[str, object]:
        names = ("test",) if self._name in self._files.unseen else SPLITS
        splits = {split: _Split((folder / f"{self._name}.{split}.bin").open("wb")) for split in names}
        try:
            self._fill(plan, splits, progress)
        finally:
            for split in splits.values():
                split.stream.close()
        self._check(splits)
        return {split: state.row() for split, state in splits.items()}

    def _fill(self, plan: _Plan, splits: dict[str, _Split], progress: Progress) -> None:
        written = 0
        for batch in _batches(round_robin(self._files.root, self._files.all[self._name])):
            before = written
            for document, ids in zip(batch, self._tokenizer.encode([d.text for d in batch]), strict=True):
                if not ids:
                    continue
                split = splits[plan.split[document.file, document.index]]
                split.append(np.asarray(ids + self._tail, self._dtype), len(document.text.encode()))
                written += len(ids) + len(self._tail)
                if self._limit is not None and written >= self._limit and all(s.tokens for s in splits.values()):
                    progress(self._name, written - before)
                    return
            progress(self._name, written - before)

    def _check(self, splits: dict[str, _Split]) -> None:
        first = next(iter(splits))
        if splits[first].tokens < self._needed:
            found = f"{splits[first].tokens} {first} tokens"
            expected = f"at least {self._needed}; only --calib-tokens lowers it"
            raise InputError("E_DOMAIN", self._files.root, self._name, found, expected)
        for split, state in splits.items():
            if not state.tokens:
                raise InputError("E_DOMAIN", self._files.root, self._name, f"0 {split} tokens", "at least 1")


def round_robin(root: Path, files: list[str]) -> Iterator[Document]:
    """A document of each file in turn, so that no single file decides an expert; a file that has ended drops out."""
    readers = [read_documents(root, file) for file in files]
    while readers:
        still = []
        for reader in readers:
            document = next(reader, None)
            if document is not None:
                yield document
                still.append(reader)
        readers = still


def _batches(documents: Iterator[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    for document in documents:
        batch.append(document)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _needed_bytes(files: DomainFiles, plans: dict[str, _Plan], options: Options, dtype: np.dtype) -> int:
    """Upper bound: a byte-level tokenizer gives at most a token a byte, and a separator a document."""
    total = 0
    for name, plan in plans.items():
        limit = options.unseen_tokens if name in files.unseen else options.max_tokens
        tokens = plan.text_bytes + len(plan.split)
        total += tokens if limit is None else min(tokens, limit + 2 * 16_384)
    return total * dtype.itemsize


def sources(files: DomainFiles) -> list[dict[str, object]]:
    """Every file with its size and checksum."""
    rows = []
    for name, members in files.all.items():
        for file in members:
            path = files.root / file
            with path.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
            rows.append({"domain": name, "file": file, "bytes": path.stat().st_size, "sha256": digest})
    return rows
