"""Arrivals and lengths: published traces, or a seeded Poisson load that needs no file."""

import bz2
import csv
import gzip
import itertools
import json
import lzma
import math
import random
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import IO, Any

from outrider.refactor.errors import InputError

BLOCK_TOKENS = 512  # of a Mooncake hash id
_OPENERS: dict[str, Callable[..., IO[str]]] = {".xz": lzma.open, ".bz2": bz2.open, ".gz": gzip.open}
_BROKEN = (csv.Error, lzma.LZMAError, zlib.error)
_OWN = ("arrival_s", "prompt_tokens", "output_tokens")


@dataclass(frozen=True)
class Row:
    """One request. `blocks`: ids of its prompt's beginning; equal ids are equal text, `block_tokens` each."""

    arrival_s: float
    prompt_tokens: int
    written_tokens: int
    blocks: tuple[int, ...] = ()
    block_tokens: int = BLOCK_TOKENS


@dataclass(frozen=True)
class Load:
    """Rows by arrival, the first at 0. `dropped`: rows of the trace that do not fit the context or write nothing."""

    name: str
    rows: list[Row]
    dropped: int = 0

    @property
    def rate(self) -> float:
        """Requests per second of the recorded arrivals."""
        span = self.rows[-1].arrival_s if len(self.rows) > 1 else 0.0
        return (len(self.rows) - 1) / span if span else math.inf


def check_rate(load: Load) -> None:
    """Raises InputError E_TRACE for a load that has no rate."""
    if not math.isfinite(load.rate):
        found = f"{len(load.rows)} requests at one instant"
        expected = "two at different times: rates are what is compared"
        raise InputError("E_TRACE", load.name, "arrivals", found, expected)


def poisson(rows: int, seed: int, *, prompt_mean: int = 96, written_mean: int = 32) -> Iterator[Row]:
    """One request a second on average; lengths are geometric-like, as in chats."""
    draw, now = random.Random(seed), 0.0
    for _ in range(rows):
        lengths = [max(1, round(draw.expovariate(1 / mean))) for mean in (prompt_mean, written_mean)]
        yield Row(now, *lengths)
        now += draw.expovariate(1.0)


def read_trace(path: Path) -> Iterator[Row]:
    """Rows of a trace file, in its order; the format shows in its first line.

    Raises:
        InputError: E_TRACE for a file that cannot be read or has another format; it names the line.
    """
    opener = _OPENERS.get(path.suffix, open)
    lines = None
    try:
        with opener(path, "rt", encoding="utf-8-sig") as stream:
            lines = _Lines(stream)
            yield from _rows(lines)
    except (*_BROKEN, OSError, EOFError, ValueError, TypeError, OverflowError) as error:
        at = f"line {lines.number}: " if lines and lines.number else ""
        said = at + (str(error)[:160] or "an end too early")
        raise InputError("E_TRACE", path, "trace", said, "a trace file") from None


class _Lines:
    """Lines that are not empty, and the number of the last one."""

    def __init__(self, stream: Iterable[str]) -> None:
        self._stream = iter(stream)
        self.number = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        for line in self._stream:
            self.number += 1
            if line.strip():
                return line
        raise StopIteration


def _rows(lines: _Lines) -> Iterator[Row]:
    first = next(lines, "")
    rest = itertools.chain([first], lines)
    if first.lstrip().startswith("{"):
        return map(_json_row, rest)
    if "ContextTokens" in first:
        return _azure(_table(rest, "TIMESTAMP", "ContextTokens", "GeneratedTokens"))
    if "Request tokens" in first:
        return _burstgpt(_table(rest, "Timestamp", "Request tokens", "Response tokens"))
    if "arrival_s" in first:
        return map(_own, _table(rest, *_OWN))
    raise ValueError("no head arrival_s,prompt_tokens,output_tokens, Azure's or BurstGPT's, nor JSON lines")


def _table(lines: Iterable[str], *columns: str) -> Iterable[dict[str, Any]]:
    """Rows of a CSV file that has these columns, in any order."""
    reader = csv.DictReader(lines, skipinitialspace=True)
    found = [name.strip() for name in reader.fieldnames or ()]
    missing = [name for name in columns if name not in found]
    if missing:
        raise ValueError(f"no column {', '.join(missing)}, but {', '.join(found)}")
    reader.fieldnames = found
    return reader


def _azure(rows: Iterable[dict[str, Any]]) -> Iterator[Row]:
    begin = None
    for row in rows:
        now = datetime.fromisoformat(str(row["TIMESTAMP"])[:26])
        now = now.replace(tzinfo=None)  # all of one file are of one zone
        begin = begin or now
        yield Row((now - begin).total_seconds(), _length(row, "ContextTokens"), _length(row, "GeneratedTokens"))


def _burstgpt(rows: Iterable[dict[str, Any]]) -> Iterator[Row]:
    for row in rows:
        written = _length(row, "Response tokens")
        if written > 0:  # failed ones have none
            yield Row(_number(row, "Timestamp"), _length(row, "Request tokens"), written)


def _json_row(line: str) -> Row:
    row = json.loads(line)
    if not isinstance(row, dict):
        raise ValueError(f"a {type(row).__name__}, not an object")
    return _own(row) if "arrival_s" in row else _mooncake(row)


def _mooncake(row: dict[str, Any]) -> Row:
    blocks = row.get("hash_ids") or []
    if not isinstance(blocks, list):
        raise ValueError(f"hash_ids: {str(blocks)[:40]}, not a list")
    return Row(
        _number(row, "timestamp") / 1000, _length(row, "input_length"), _length(row, "output_length"), tuple(blocks)
    )


def _own(row: dict[str, Any]) -> Row:
    """The format that is documented for everybody's own traces."""
    arrival, prompt, written = _OWN
    return Row(_number(row, arrival), _length(row, prompt), _length(row, written))


def _number(row: dict[str, Any], name: str) -> float:
    value = row.get(name)
    if value is None or value == "":
        raise ValueError(f"no {name}")
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{name}: {str(value)[:40]!r} is no number")
    return number


def _length(row: dict[str, Any], name: str) -> int:
    number = _number(row, name)
    if number < 0 or number != int(number):
        raise ValueError(f"{name}: {number:g} is no number of tokens")
    return int(number)


def window(rows: Iterable[Row], count: int, fits: Callable[[Row], bool], seed: int) -> tuple[list[Row], int]:
    """`count` of the rows that fit, one behind the other, from a place that `seed` draws; and how many do not fit.

    Neighbours stay together: bursts and shared prefixes are as recorded.
    """
    every = list(rows)
    kept = [row for row in every if fits(row)]
    first = random.Random(seed).randrange(max(1, len(kept) - count + 1))
    return kept[first : first + count], len(every) - len(kept)


def shape(name: str, rows: Iterable[Row], *, count: int, scale: int, context: int, seed: int = 0) -> Load:
    """`count` rows that fit `context` after dividing all lengths by `scale`, see `window`.

    Raises:
        InputError: E_TRACE when none fits.
    """

    def scaled(row: Row) -> Row:
        prompt, written = (length and max(1, length // scale) for length in (row.prompt_tokens, row.written_tokens))
        block = max(1, row.block_tokens // scale)
        return replace(row, prompt_tokens=prompt, written_tokens=written, block_tokens=block)

    def fits(row: Row) -> bool:
        return min(row.prompt_tokens, row.written_tokens) > 0 and row.prompt_tokens + row.written_tokens <= context

    ordered = sorted(map(scaled, rows), key=lambda row: row.arrival_s)
    kept, dropped = window(ordered, count, fits, seed)
    if not kept:
        found = f"none of {dropped} fit" if dropped else "none"
        raise InputError("E_TRACE", name, "rows", found, f"prompt and text, both of some tokens, within {context}")
    begin = kept[0].arrival_s
    return Load(name, [replace(row, arrival_s=row.arrival_s - begin) for row in kept], dropped)
