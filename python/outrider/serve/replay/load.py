"""Arrivals and lengths: published traces, or a seeded Poisson load that needs no file."""

import bz2
import csv
import gzip
import json
import lzma
import math
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import IO, Any

from outrider.refactor.errors import InputError

BLOCK_TOKENS = 512  # of a Mooncake hash id
_OPENERS: dict[str, Callable[..., IO[str]]] = {".xz": lzma.open, ".bz2": bz2.open, ".gz": gzip.open}


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
    """Rows by arrival, the first at 0. `dropped`: rows of the trace that do not fit the context."""

    name: str
    rows: list[Row]
    dropped: int = 0

    @property
    def rate(self) -> float:
        """Requests per second of the recorded arrivals."""
        span = self.rows[-1].arrival_s if len(self.rows) > 1 else 0.0
        return (len(self.rows) - 1) / span if span else math.inf


def poisson(rows: int, seed: int, *, prompt_mean: int = 96, written_mean: int = 32) -> Iterator[Row]:
    """One request a second on average; lengths are geometric-like, as in chats."""
    draw, now = random.Random(seed), 0.0
    for _ in range(rows):
        lengths = [max(1, round(draw.expovariate(1 / mean))) for mean in (prompt_mean, written_mean)]
        yield Row(now, *lengths)
        now += draw.expovariate(1.0)


def read_trace(path: Path) -> Iterator[Row]:
    """Rows of a trace file; the format shows in its first line.

    Raises:
        InputError: E_TRACE for a file that cannot be read or has another format.
    """
    opener = _OPENERS.get(path.suffix, open)
    try:
        with opener(path, "rt", encoding="utf-8") as stream:
            first = stream.readline()
            lines = _with_first(first, stream)
            if first.startswith("{"):
                yield from _json_lines(lines)
            elif "ContextTokens" in first:
                yield from _azure(csv.DictReader(lines))
            elif "Request tokens" in first:
                yield from _burstgpt(csv.DictReader(lines))
            elif "arrival_s" in first:
                yield from map(_own, csv.DictReader(lines))
            else:
                raise ValueError("no head arrival_s,prompt_tokens,output_tokens, Azure's or BurstGPT's, nor JSON lines")
    except (OSError, EOFError, lzma.LZMAError, ValueError, KeyError, TypeError) as error:
        raise InputError("E_TRACE", path, "trace", str(error)[:120] or "an end too early", "a trace file") from None


def _with_first(first: str, rest: Iterable[str]) -> Iterator[str]:
    yield first
    yield from rest


def _azure(rows: Iterable[dict[str, str]]) -> Iterator[Row]:
    begin = None
    for row in rows:
        now = datetime.fromisoformat(row["TIMESTAMP"][:26])
        begin = begin or now
        yield Row((now - begin).total_seconds(), int(row["ContextTokens"]), int(row["GeneratedTokens"]))


def _burstgpt(rows: Iterable[dict[str, str]]) -> Iterator[Row]:
    for row in rows:
        if int(row["Response tokens"]) > 0:  # failed ones have none
            yield Row(float(row["Timestamp"]), int(row["Request tokens"]), int(row["Response tokens"]))


def _json_lines(lines: Iterable[str]) -> Iterator[Row]:
    for line in lines:
        row = json.loads(line)
        yield _own(row) if "arrival_s" in row else _mooncake(row)


def _mooncake(row: dict[str, Any]) -> Row:
    return Row(row["timestamp"] / 1000, row["input_length"], row["output_length"], tuple(row["hash_ids"]))


def _own(row: dict[str, Any]) -> Row:
    """The format that is documented for everybody's own traces."""
    return Row(float(row["arrival_s"]), int(row["prompt_tokens"]), int(row["output_tokens"]))


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
        prompt, written = max(1, row.prompt_tokens // scale), max(1, row.written_tokens // scale)
        block = max(1, row.block_tokens // scale)
        return replace(row, prompt_tokens=prompt, written_tokens=written, block_tokens=block)

    def fits(row: Row) -> bool:
        return row.prompt_tokens + row.written_tokens <= context

    kept, dropped = window(map(scaled, rows), count, fits, seed)
    if not kept:
        raise InputError("E_TRACE", name, "rows", f"none of {dropped} fit", f"prompt and text within {context} tokens")
    kept.sort(key=lambda row: row.arrival_s)
    begin = kept[0].arrival_s
    return Load(name, [replace(row, arrival_s=row.arrival_s - begin) for row in kept], dropped)
