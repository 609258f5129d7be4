"""Rows of a card from measured figures."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from outrider.refactor.stats.perplexity import Losses, compare
from outrider.refactor.stats.tasks import compare_tasks
from outrider.refactor.tasks.scoring import TaskScores


@dataclass(frozen=True)
class Measured:
    """One model's figures: loss of each document by domain, and of unseen text; score of each item by task."""

    losses: Losses
    unseen: Losses = field(default_factory=dict)
    tasks: Mapping[str, TaskScores] = field(default_factory=dict)


@dataclass(frozen=True)
class Cost:
    """What it took to make a row. `active`: share of the FFN that runs for a token, 1 for a dense model."""

    active: float
    loss: str = "none"
    teacher: str | None = None
    tuning_tokens: int = 0
    router_tokens: int = 0
    teacher_tokens: int = 0
    seconds: float = 0.0
    seeds: tuple[int, ...] = ()


def make_row(
    name: str, measured: Measured, cost: Cost, *, static: Measured | None = None, note: str | None = None, seed: int = 0
) -> dict[str, Any]:
    """A row for `rows` of a quality card; with `static`, paired intervals against that model.

    Raises:
        ValueError: `static` was measured on other documents or items.
    """
    row: dict[str, Any] = {
        "name": name,
        "note": note,
        "active": cost.active,
        "loss": cost.loss,
        "teacher": cost.teacher,
        "tokens": {"tuning": cost.tuning_tokens, "router": cost.router_tokens, "teacher": cost.teacher_tokens},
        "seconds": cost.seconds,
        "seeds": list(cost.seeds),
        "domains": _losses(measured.losses),
        "unseen": _losses(measured.unseen),
        "tasks": {task: scores.summary() for task, scores in measured.tasks.items()},
        "against_static": None,
        "tasks_against_static": None,
    }
    if static is not None:
        row["against_static"] = _intervals(compare(measured.losses, static.losses, seed=seed))
        both = [task for task in measured.tasks if task in static.tasks]
        row["tasks_against_static"] = {
            task: _intervals(compare_tasks(measured.tasks[task], static.tasks[task], seed=seed)) for task in both
        }
    return row


def _losses(losses: Losses) -> dict[str, dict[str, Any]]:
    return {
        name: {
            "nats": loss.nats_per_token,
            "tokens": int(loss.tokens.sum()),
            "bits_per_byte": loss.bits_per_byte,
        }
        for name, loss in losses.items()
    }


def _intervals(intervals: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    return {name: interval.row() for name, interval in intervals.items()}
