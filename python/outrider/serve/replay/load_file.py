"""A load with its prompts as token ids, in one JSON file: fixed, without need of trace, text or tokenizer."""

import hashlib
import json
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
        return Prepared(Load(root["name"], rows, root["dropped"]), prompts, dict(root["about"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError("E_TRACE", path, "load", str(error)[:120], "a file of `outrider bench load`") from None
