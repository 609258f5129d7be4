"""The standard scores of lm-evaluation-harness, over anything that gives log-likelihoods."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from outrider.refactor.tasks.items import Choice, Cloze, Item

Likelihood = tuple[float, bool]


class Scorer(Protocol):
    """What a model has to answer."""

    def loglikelihood(self, requests: list[tuple[str, str]]) -> list[Likelihood]:
        """For each (context, continuation): the sum of the continuation's log-probabilities in nats given the
        context, and whether greedy decoding would write it."""


@dataclass(frozen=True)
class TaskScores:
    """`values[metric][i]` belongs to `ids[i]`: 0 or 1 for accuracies, a log-probability in nats for `perplexity`."""

    ids: list[str]
    values: dict[str, list[float]]

    def summary(self) -> dict[str, dict[str, float]]:
        """metric -> {value, stderr, items}; perplexity is exp of minus the mean, its error by the delta method."""
        return {metric: _summary(metric, values) for metric, values in self.values.items()}


def score(items: Sequence[Item], scorer: Scorer) -> TaskScores:
    """`acc` (highest sum), `acc_norm` (highest sum per character, as the harness has it), `acc_bytes` (per byte) for
    choices; `acc` for partial contexts; `acc` (greedy) and `perplexity` for last words. Ties go to the first option.

    Raises:
        ValueError: the scorer gave another number of answers than it was asked for.
    """
    groups = [item.requests() for item in items]
    answers = scorer.loglikelihood([request for group in groups for request in group])
    if len(answers) != sum(map(len, groups)):
        raise ValueError(f"the scorer gave {len(answers)} answers to {sum(map(len, groups))} requests")
    values: dict[str, list[float]] = {}
    start = 0
    for item, group in zip(items, groups, strict=True):
        for metric, value in _scores(item, answers[start : start + len(group)]).items():
            values.setdefault(metric, []).append(value)
        start += len(group)
    return TaskScores([item.id for item in items], values)


def _scores(item: Item, answers: Sequence[Likelihood]) -> dict[str, float]:
    if isinstance(item, Cloze):
        return {"acc": float(answers[0][1]), "perplexity": answers[0][0]}
    sums = [likelihood for likelihood, _ in answers]
    scores = {"acc": float(_argmax(sums) == item.gold)}
    if isinstance(item, Choice):
        characters = [s / len(choice) for s, choice in zip(sums, item.choices, strict=True)]
        text_bytes = [s / len(choice.encode()) for s, choice in zip(sums, item.choices, strict=True)]
        scores["acc_norm"] = float(_argmax(characters) == item.gold)
        scores["acc_bytes"] = float(_argmax(text_bytes) == item.gold)
    return scores


def _argmax(values: Sequence[float]) -> int:
    return max(range(len(values)), key=lambda i: (values[i], -i))


def _summary(metric: str, values: list[float]) -> dict[str, float]:
    count = len(values)
    mean = math.fsum(values) / count
    variance = math.fsum((v - mean) ** 2 for v in values) / (count - 1) if count > 1 else 0.0
    error = math.sqrt(variance / count)
    if metric == "perplexity":
        mean, error = math.exp(-mean), math.exp(-mean) * error
    return {"value": mean, "stderr": error, "items": count}
