"""Scores of finished rows on standard task sets, read from the published files."""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from outrider.refactor.errors import InputError
from outrider.refactor.stats.tasks import compare_tasks
from outrider.refactor.tasks.chosen import picked, score_all
from outrider.refactor.tasks.items import Item
from outrider.refactor.tasks.scorers import BatchScorer, bench_scorer
from outrider.refactor.tasks.scoring import TaskScores
from outrider.refactor.tasks.shots import PUBLISHED, with_shots
from outrider.refactor.tasks.sources import SOURCES, load
from row_runner import RESERVE_S, Runner
from row_table import Row

BATCH_TOKENS = {"cpu": 4_096}
BATCH_TOKENS_GPU = 65_536
# Row that others are compared with, item by item -> field of the results.
BASES = {"static": "against_static", "static+": "against_more"}


def task_items(folder: Path, mode: str, names: Iterable[str]) -> dict[str, list[Item]]:
    """Task -> items as `outrider data tasks` makes them, `quick` or `full`.

    Raises:
        InputError: E_TASK for a file that does not fit.
    """
    return {name: picked(with_shots(load(name, folder), PUBLISHED.get(name, 0)), mode) for name in names or SOURCES}


def score_rows(runner: Runner, rows: list[Row], items: dict[str, list[Item]]) -> bool:
    """Scores the parent and the finished ones of `rows`, a task at a time; False when the time ended first."""
    for row in (None, *rows):
        if row is not None and runner.result(row) is None:
            continue
        for task, some in items.items():
            if runner.clock.left() < RESERVE_S:
                return False
            name = row.key if row else "parent"
            try:
                score_all({task: some}, lambda row=row: _scorer(runner, row), runner.scores(row), _note(runner, name))
            except InputError as error:
                runner.log(f"{name}: {error}")
                break
    return True


def _note(runner: Runner, name: str):
    return lambda line: runner.log(f"{name}: {line}")


def _scorer(runner: Runner, row: Row | None) -> BatchScorer:
    batch_tokens = BATCH_TOKENS.get(runner.plan.device, BATCH_TOKENS_GPU)
    return bench_scorer(runner.bench(row), Path(runner.plan.model), batch_tokens=batch_tokens)


def kept_scores(runner: Runner, row: Row | None) -> dict[str, TaskScores]:
    path = runner.scores(row)
    entries = json.loads(path.read_text()) if path.exists() else {}
    return {task: TaskScores(**entry) for task, entry in entries.items()}


def task_results(runner: Runner, rows: list[Row]) -> list[dict[str, Any]]:
    """One entry a model: `row`, `scores` (task -> metric -> value, stderr, items) and, for each of `BASES` of the same
    kind that is in `rows` and has scores on the same items, its field (task -> metric -> value, low, high)."""
    bases = {(r.preset, r.active, r.distilled, r.name): r for r in rows if r.name in BASES}
    found = []
    for row in (None, *rows):
        scores = kept_scores(runner, row)
        if not scores:
            continue
        entry: dict[str, Any] = {"row": runner.plan.identity(row) if row else "parent"}
        entry["scores"] = {task: one.summary() for task, one in scores.items()}
        for name, field in BASES.items():
            base = bases.get((row.preset, row.active, row.distilled, name)) if row else None
            if base is not None and base is not row:
                entry[field] = _against(scores, kept_scores(runner, base))
        found.append(entry)
    return found


def _against(scores: dict[str, TaskScores], base: dict[str, TaskScores]) -> dict[str, Any]:
    same = [task for task in scores if task in base and base[task].ids == scores[task].ids]
    return {task: {metric: i.row() for metric, i in compare_tasks(scores[task], base[task]).items()} for task in same}


def merged(before: dict[str, Any], entry: dict[str, Any]) -> dict[str, Any]:
    """Of one model: with the tasks that only the earlier entry has."""
    parts = {name: before.get(name, {}) | part for name, part in entry.items() if name != "row"}
    return before | entry | parts


def markdown(entries: list[dict[str, Any]]) -> str:
    """Points with their standard error, the first metric of each task."""
    names = list(dict.fromkeys(task for entry in entries for task in entry["scores"]))
    lines = ["| row | " + " | ".join(names) + " |", "|" + " --- |" * (len(names) + 1)]
    for entry in entries:
        cells = [_cell(entry["scores"].get(name)) for name in names]
        name = entry["row"] if entry["row"] == "parent" else entry["row"].rpartition("-")[0]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(scores: dict[str, dict[str, float]] | None) -> str:
    if scores is None:
        return ""
    metric = next((name for name in ("acc_norm", "acc") if name in scores), min(scores))
    value, error = scores[metric]["value"], scores[metric]["stderr"]
    return (
        "" if math.isnan(value) else f"{100 * value:.2f} ± {100 * error:.2f} ({metric}, {scores[metric]['items']:.0f})"
    )
