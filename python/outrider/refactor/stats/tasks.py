"""Task scores side by side."""

import numpy as np

from outrider.refactor.stats.bootstrap import CONFIDENCE, Interval, resample_sums
from outrider.refactor.tasks.scoring import TaskScores


def compare_tasks(ours: TaskScores, base: TaskScores, *, resamples: int = 2_000, seed: int = 0) -> dict[str, Interval]:
    """Paired bootstrap over items: ours - base for accuracies, ours / base for perplexity.

    Raises:
        ValueError: the two sides scored other items or have no metric in common.
    """
    if ours.ids != base.ids:
        raise ValueError("the two sides scored other items")
    metrics = [metric for metric in ours.values if metric in base.values]
    if not metrics:
        raise ValueError("the two sides have no metric in common")
    result: dict[str, Interval] = {}
    for metric in metrics:
        difference = np.asarray(ours.values[metric]) - np.asarray(base.values[metric])
        means = resample_sums(difference[None], resamples, (seed,))[0] / difference.size
        if metric == "perplexity":
            result[metric] = Interval.of(float(np.exp(-difference.mean())), np.exp(-means), CONFIDENCE)
        else:
            result[metric] = Interval.of(float(difference.mean()), means, CONFIDENCE)
    return result
