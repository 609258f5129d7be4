"""Examples in front of a question, for task sets that have no training part here."""

from dataclasses import replace

import numpy as np

from outrider.refactor.tasks.items import Choice, Item

# Shots of the published evaluation (Read-ME, arXiv 2410.19123). MMLU's five are part of its items already.
PUBLISHED = {"arc_challenge": 25, "hellaswag": 10}
SEED = 1234


def with_shots(items: list[Item], count: int, seed: int = SEED) -> list[Item]:
    """Takes `count` items out of scoring, the same for all, and puts them solved before each of the rest.

    Raises:
        ValueError: the items are not choices, or too few.
    """
    if count == 0:
        return items
    if count >= len(items):
        raise ValueError(f"{count} shots need more than {len(items)} items")
    picked = [int(i) for i in np.random.default_rng(seed).permutation(len(items))[:count]]
    examples = []
    for index in picked:
        example = items[index]
        if not isinstance(example, Choice):
            raise ValueError(f"{example.id} is no choice among continuations")
        examples.append(f"{example.context} {example.choices[example.gold]}\n\n")
    prefix, left_out = "".join(examples), set(picked)
    return [
        replace(item, context=prefix + item.context)
        for index, item in enumerate(items)
        if index not in left_out and isinstance(item, Choice)
    ]
