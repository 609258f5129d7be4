"""A load with its prompts as token ids, in one JSON file: fixed, without need of trace, text or tokenizer."""

import hashlib
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from outrider.refactor.atomic import write_file
from outrider.refactor.errors import InputError
from outrider.serve.replay.load import Load, Row

FORMAT = 1


@dataclass(frozen=True)
class Prepared:
    """`about`: how it was made. Prompts are those of `load.rows`."""

    load: Load
    prompts: list[list[int]]
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def sha256(self) -> str:
        """Of arrivals, lengths and prompts."""
        digest = hashlib.sha256()
        for row, prompt in zip(self.load.rows, self.prompts, strict=True):
            digest.update(repr((row.arrival_s, row.written_tokens, prompt)).encode())
        return digest.hexdigest()

    def first(self, count: int) -> "Prepared":
        """The first `count` rows."""
        load = Load(self.load.name, self.load.rows[:count], self.load.dropped)
        return Prepared(load, self.prompts[:count], self.about)

    def summary(self) -> dict[str, Any]:
        return {
            "name": self.load.name,
            "rows": len(self.load.rows),
            "dropped": self.load.dropped,
            "prompt_tokens": sum(map(len, self.prompts)),
            "written_tokens": sum(row.written_tokens for row in self.load.rows),
            "sha256": self.sha256,
            **self.about,
        }


def write_load(path: Path, prepared: Prepared) -> None:
    rows = [
        {"arrival_s": row.arrival_s, "output_tokens": row.written_tokens, "prompt": prompt}
        for row, prompt in zip(prepared.load.rows, prepared.prompts, strict=True)
    ]
    head = {"format": FORMAT, "name": prepared.load.name, "dropped": prepared.load.dropped, "about": prepared.about}
    write_file(path, json.dumps({**head, "rows": rows}, separators=(",", ":")) + "\n")


def read_load(path: Path) -> Prepared:
    """Raises InputError: E_TRACE for a file that is none."""
    try:
        root = json.loads(path.read_text("utf-8"))
        if root["format"] != FORMAT:
            raise ValueError(f"format {root['format']}")
        rows = [Row(row["arrival_s"], len(row["prompt"]), row["output_tokens"]) for row in root["rows"]]
        prompts = [list(map(int, row["prompt"])) for row in root["rows"]]
        _check(rows, prompts)
        return Prepared(Load(root["name"], rows, root["dropped"]), prompts, dict(root["about"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError("E_TRACE", path, "load", str(error)[:120], "a file of `outrider bench load`") from None


def _check(rows: list[Row], prompts: list[list[int]]) -> None:
    """Raises ValueError for a load that nothing can replay."""
    if not rows:
        raise ValueError("no row")
    for number, (row, prompt) in enumerate(zip(rows, prompts, strict=True)):
        if not (math.isfinite(row.arrival_s) and row.arrival_s >= rows[max(number - 1, 0)].arrival_s):
            raise ValueError(f"row {number}: arrival_s {row.arrival_s}")
        if row.written_tokens < 1 or row.written_tokens != int(row.written_tokens):
            raise ValueError(f"row {number}: output_tokens {row.written_tokens}")
        if not prompt or min(prompt) < 0:
            raise ValueError(f"row {number}: a prompt without tokens, or with a negative one")


def check_fits(where: Path, prepared: Prepared, info: dict[str, Any]) -> None:
    """Raises InputError: E_TRACE for a load that was made for another model; `info` is the engine's."""
    for number, (row, prompt) in enumerate(zip(prepared.load.rows, prepared.prompts, strict=True)):
        if max(prompt) >= info["vocab"]:
            expected = f"below the model's {info['vocab']}: a load is made with the model's tokenizer"
            raise InputError("E_TRACE", where, f"row {number}", f"token {max(prompt)}", expected)
        tokens = len(prompt) + row.written_tokens
        if tokens > info["context"]:
            expected = f"prompt and text within the model's {info['context']}"
            raise InputError("E_TRACE", where, f"row {number}", f"{tokens} tokens", expected)
