"""All policies on one load: calibration, then interleaved repetitions, each with a fresh engine."""

import hashlib
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from outrider.serve.replay.drive import RunResult, run
from outrider.serve.replay.figures import Goal, figures, markdown, percentile, summary, time_per_token
from outrider.serve.replay.load import Load

BASE = "chunked_fcfs"
POLICIES = ("decode_first", "prefill_first", BASE, "readme_greedy", "outrider")
RATES = (0.3, 0.9, 1.2)
ALONE = 8  # requests that run one at a time, to know what the machine does without company
# Goals where none are given: as many times what a request has alone.
TTFT_FACTOR, TPOT_FACTOR = 10.0, 4.0
LIMIT_FACTOR = 5.0


@dataclass(frozen=True)
class Plan:
    """`open_engine(policy)` gives an engine and the exception by which it refuses."""

    open_engine: Callable[[str], tuple[Any, type[Exception]]]
    load: Load
    prompts: list[list[int]]
    policies: Sequence[str] = POLICIES
    rates: Sequence[float] = RATES
    repetitions: int = 3
    goal: Goal | None = None
    say: Callable[[str], None] = print

    @property
    def lengths(self) -> list[int]:
        return [row.written_tokens for row in self.load.rows]


def compare(plan: Plan) -> dict[str, Any]:
    """Everything that was measured, as JSON."""
    alone = _alone(plan)
    goal = plan.goal or alone
    most = saturation(plan)
    plan.say(f"{BASE} does {most:.2f} requests/s at most")
    plan.say(f"goals: the first token after {goal.ttft_s:.3f} s, then {goal.tpot_s:.4f} s a token")
    runs: list[dict[str, Any]] = []
    digests: dict[str, str] = {}
    experts: list[list[int]] = []
    for repetition in range(plan.repetitions):
        for share in plan.rates:
            shift = repetition % len(plan.policies)
            for policy in [*plan.policies[shift:], *plan.policies[:shift]]:
                result = _at_rate(plan, policy, share * most)
                one = {"repetition": repetition, "rate_share": share, "policy": policy, **figures(result, goal)}
                runs.append(one)
                digests.setdefault(policy, _digest(result))
                experts = experts or [record.experts for record in result.records]
                plan.say(_line(one))
    rows = summary(runs)
    return {
        "load": {
            "name": plan.load.name,
            "rows": len(plan.load.rows),
            "dropped": plan.load.dropped,
            "prompt_tokens": sum(map(len, plan.prompts)),
            "written_tokens": sum(plan.lengths),
            "sha256": _load_digest(plan),
        },
        "machine": {"system": platform.platform(), "cores": os.cpu_count(), "python": platform.python_version()},
        "saturation_requests_per_s": most,
        "goal": asdict(goal),
        "experts_sha256": digests,
        "experts": experts,
        "runs": runs,
        "summary": rows,
        "table": markdown(rows),
    }


def saturation(plan: Plan) -> float:
    """Requests per second that the base policy finishes when all are there from the beginning."""
    result = _run(plan, BASE, [0.0] * len(plan.prompts), patient=True)
    done = sum(record.finish == "length" for record in result.records)
    return done / result.seconds


def _alone(plan: Plan) -> Goal:
    """Goals from requests that have the machine to themselves."""
    engine, rejected = plan.open_engine(BASE)
    ttft, tpot = [], []
    try:
        for prompt, length in list(zip(plan.prompts, plan.lengths, strict=True))[:ALONE]:
            record = run(engine, rejected, [prompt], [max(length, 2)], [0.0], limit_s=600).records[0]
            ttft.append(record.first_s or 0.0)
            tpot.append(time_per_token(record) or 0.0)
    finally:
        engine.close()
    return Goal(TTFT_FACTOR * (percentile(ttft, 0.95) or 0), TPOT_FACTOR * (percentile(tpot, 0.5) or 0))


def _at_rate(plan: Plan, policy: str, rate: float) -> RunResult:
    stretch = plan.load.rate / rate
    return _run(plan, policy, [row.arrival_s * stretch for row in plan.load.rows])


def _run(plan: Plan, policy: str, due_s: list[float], *, patient: bool = False) -> RunResult:
    engine, rejected = plan.open_engine(policy)
    limit = 600 + LIMIT_FACTOR * due_s[-1]
    try:
        return run(engine, rejected, plan.prompts, plan.lengths, due_s, limit_s=limit, patient=patient)
    finally:
        engine.close()


def _digest(result: RunResult) -> str:
    """Of the experts of all requests: equal over policies, unless one refused a request."""
    digest = hashlib.sha256()
    for record in result.records:
        digest.update(bytes(record.experts) + b"\xff")
    return digest.hexdigest()


def _load_digest(plan: Plan) -> str:
    digest = hashlib.sha256()
    for row, prompt in zip(plan.load.rows, plan.prompts, strict=True):
        digest.update(repr((row.arrival_s, row.written_tokens, prompt)).encode())
    return digest.hexdigest()


def _line(one: dict[str, Any]) -> str:
    ttft, tpot = one["ttft_s_mean"] or 0, one["tpot_s_mean"] or 0
    good = one["goodput_tokens_per_s"]
    times = f"first {1000 * ttft:.0f} ms, then {1000 * tpot:.1f} ms"
    head = f"{one['rate_share']:g} {one['policy']:>14} #{one['repetition']}"
    return f"{head}: {good:.1f} good tokens/s, {times}, {one['rejected']} refused"
