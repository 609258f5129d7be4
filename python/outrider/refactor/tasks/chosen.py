"""Which items of which tasks a run is scored on, and the scores of one model on them."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from outrider.refactor.atomic import write_file
from outrider.refactor.errors import InputError
from outrider.refactor.tasks.items import Item, read_items
from outrider.refactor.tasks.scoring import Scorer, TaskScores, score

MODES = ("none", "quick", "full")
QUICK_ITEMS = 200
SEED = 2_025


@dataclass(frozen=True)
class TaskChoice:
    """`quick`: the same 200 items of each task always; `full`: all. `folder`: output of `outrider data tasks`."""

    mode: str = "none"
    folder: Path | None = None

    def items(self) -> dict[str, list[Item]]:
        """Task -> items, in the order of the files' names.

        Raises:
            InputError: E_USAGE for an unknown mode or no folder; E_TASK for a folder without tasks, or a bad one.
        """
        if self.mode not in MODES:
            raise InputError("E_USAGE", "outrider refactor", "--tasks", repr(self.mode), " or ".join(MODES))
        if self.mode == "none":
            return {}
        if self.folder is None:
            expected = "--task-data DIR, made by `outrider data tasks`"
            raise InputError("E_USAGE", "outrider refactor", "--tasks", f"{self.mode} without items", expected)
        paths = sorted(self.folder.glob("*.jsonl"))
        if not paths:
            raise InputError("E_TASK", self.folder, "tasks", "no .jsonl file", "the output of `outrider data tasks`")
        return {path.stem: picked(read_items(path), self.mode) for path in paths}


def picked(items: list[Item], mode: str) -> list[Item]:
    """All items, or with `quick` 200 that depend on their number alone, in their own order."""
    if mode == "full" or len(items) <= QUICK_ITEMS:
        return items
    order = np.random.default_rng(SEED).permutation(len(items))[:QUICK_ITEMS]
    return [items[i] for i in sorted(order)]


def score_all(
    items: Mapping[str, list[Item]],
    make_scorer: Callable[[], Scorer],
    path: Path,
    note: Callable[[str], None] = lambda line: None,
) -> dict[str, TaskScores]:
    """Scores of one model on every task; what `path` holds already, of the same items, is not scored again."""
    kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    scores = {name: TaskScores(**entry) for name, entry in kept.items()}
    scorer: Scorer | None = None
    for name, some in items.items():
        if name in scores and scores[name].ids == [item.id for item in some]:
            continue
        scorer = scorer or make_scorer()
        scores[name] = score(some, scorer)
        write_file(path, json.dumps({key: asdict(value) for key, value in scores.items()}) + "\n")
        for metric, row in scores[name].summary().items():
            note(f"{name} {metric}: {row['value']:.4f} ± {row['stderr']:.4f}, {row['items']} items")
    return {name: scores[name] for name in items}
