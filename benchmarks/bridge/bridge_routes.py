"""Routes of the bridge experiment: which expert each token of each step takes, drawn ahead from a Markov chain."""

import itertools
import random
from dataclasses import dataclass


@dataclass(frozen=True)
class RouteOptions:
    """`states` 0: every row of the batch has a chain of its own over the experts, so that mixes hardly repeat.

    Otherwise the chain runs over that many mixes of the whole batch, drawn once. `stay_rate` is the probability of
    staying; a chain that leaves goes to any other state alike.
    """

    experts: int
    batch: int
    steps: int
    stay_rate: float
    states: int
    seed: int = 0


def _chain(generator, states, steps, stay_rate):
    """Indices of the states, one a step."""
    current = generator.randrange(states)
    visited = []
    for _ in range(steps):
        visited.append(current)
        if states > 1 and generator.random() >= stay_rate:
            current = (current + generator.randrange(1, states)) % states
    return visited


def draw_routes(options):
    """Expert of each token: a list of `steps` lists of `batch` ids."""
    generator = random.Random(options.seed)
    if options.states == 0:
        rows = [_chain(generator, options.experts, options.steps, options.stay_rate) for _ in range(options.batch)]
        return [list(ids) for ids in zip(*rows, strict=True)]
    if options.batch == 1:  # a mix of one token is an expert
        mixes = [[expert] for expert in range(min(options.states, options.experts))]
    else:
        mixes = [[generator.randrange(options.experts) for _ in range(options.batch)] for _ in range(options.states)]
    return [mixes[index] for index in _chain(generator, len(mixes), options.steps, options.stay_rate)]


def groups_of(ids):
    """Expert ids of a batch -> ((expert, tokens), ...) by expert: all that the host's control flow depends on."""
    return tuple((expert, ids.count(expert)) for expert in sorted(set(ids)))


def measured_stay_rate(routes):
    """Share of tokens that keep their expert from one step to the next."""
    pairs = [(a, b) for first, second in itertools.pairwise(routes) for a, b in zip(first, second, strict=True)]
    return sum(a == b for a, b in pairs) / max(1, len(pairs))
