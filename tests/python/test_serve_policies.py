"""What the policy `outrider` costs and gains, on the simulator: virtual time, so the same figures everywhere."""

import random
import statistics
from dataclasses import dataclass

import numpy as np
import pytest
from outrider import _core
from outrider.serve.replay import load

EXPERTS, ROWS, SEEDS, RATE, CALM, FACTOR = 4, 400, 4, 1.2, 0.3, 5
LIMITS = {"decode_tokens": 32, "prefill_tokens": 512, "age_max": 64, "prompt_hold_max": 16}
FFN_BYTES = [100_000_000 - (100_000_000 >> experts.bit_count()) for experts in range(1 << EXPERTS)]


@dataclass
class Means:
    ttft_s: float
    latency_s: float
    goodput: float


def _arrivals(seed: int) -> list[tuple[float, int, int, np.ndarray]]:
    draw = random.Random(seed)
    rows = load.poisson(ROWS, seed, prompt_mean=48, written_mean=16)
    experts = lambda count: np.array([draw.randrange(EXPERTS) for _ in range(count)], np.uint8)  # noqa: E731
    return [
        (row.arrival_s, row.prompt_tokens, row.written_tokens, experts(row.prompt_tokens + row.written_tokens))
        for row in rows
    ]


def _means(policy: str, token_s: float) -> Means:
    """Over seeds, at RATE times what first come, first served does; goals from its calm run."""
    found = []
    for seed in range(SEEDS):
        arrivals = _arrivals(seed)
        own = (len(arrivals) - 1) / arrivals[-1][0]

        def run(share: float, policy: str, arrivals=arrivals, own=own) -> dict:
            due = [(time_s * share, *rest) for time_s, *rest in arrivals]
            machine = {"bytes_per_s": 12e9, "token_s": token_s, "step_s": 1e-3}
            return _core.simulate_serving(due, EXPERTS, FFN_BYTES, 50_000_000, machine, 64, policy, LIMITS)

        most = len(arrivals) / run(0, "chunked_fcfs")["seconds"]
        calm, crowd = (run(own / (share * most), of) for share, of in ((CALM, "chunked_fcfs"), (RATE, policy)))
        goals = [FACTOR * statistics.median(values) for values in (calm["ttft_s"], _per_token(arrivals, calm))]
        times = zip(arrivals, crowd["ttft_s"], _per_token(arrivals, crowd), strict=True)
        good = sum(row[2] for row, ttft, tpot in times if ttft <= goals[0] and tpot <= goals[1])
        means = (statistics.fmean(crowd[name]) for name in ("ttft_s", "latency_s"))
        found.append(Means(*means, good / crowd["seconds"]))
    return Means(*(statistics.fmean(getattr(one, name) for one in found) for name in Means.__dataclass_fields__))


def _per_token(arrivals: list, run: dict) -> list[float]:
    times = zip(arrivals, run["ttft_s"], run["latency_s"], strict=True)
    return [(latency - ttft) / max(row[2] - 1, 1) for row, ttft, latency in times]


@pytest.mark.parametrize(("token_s", "ttft", "latency", "goodput"), [(2e-5, 1.75, 0.985, 0.97), (6e-4, 1.6, 0.9, 0.95)])
def test_holding_prompts_costs_little_of_the_first_token_and_of_goodput(token_s, ttft, latency, goodput):
    ours, fcfs = _means("outrider", token_s), _means("chunked_fcfs", token_s)
    assert ours.ttft_s < ttft * fcfs.ttft_s
    assert ours.latency_s < latency * fcfs.latency_s
    assert ours.goodput > goodput * fcfs.goodput
