"""All policies on one load: calibration, then interleaved repetitions, a fresh engine each; may be cut and go on."""

import hashlib
import math
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from outrider.refactor.errors import InputError
from outrider.serve.replay.drive import RunResult, run
from outrider.serve.replay.figures import Goal, figures, markdown, percentile, summary, time_per_token
from outrider.serve.replay.load import check_rate
from outrider.serve.replay.load_file import Prepared

BASE = "chunked_fcfs"
POLICIES = ("decode_first", "prefill_first", BASE, "readme_greedy", "outrider")
LAYERWISE = "layerwise"  # a router in every layer instead of one in front; scheduled as BASE
RATES = (0.3, 0.9, 1.2)
ALONE = 8  # requests that run one at a time, to know what the machine does without company
ROWS_MIN = 8
# Goals where none are given: as many times what a request has alone.
TTFT_FACTOR, TPOT_FACTOR = 10.0, 4.0
LIMIT_FACTOR = 5.0


@dataclass(frozen=True)
class Plan:
    """`open_engine(policy)` gives an engine and the exception by which it refuses."""

    open_engine: Callable[[str], tuple[Any, type[Exception]]]
    prepared: Prepared
    policies: Sequence[str] = POLICIES
    rates: Sequence[float] = RATES
    repetitions: int = 3
    goal: Goal | None = None
    factors: tuple[float, float] = (TTFT_FACTOR, TPOT_FACTOR)  # of the goals, where none are given
    calm: float | None = None  # share at which BASE shows what `factors` multiply; None: requests alone show it
    equal_times: bool = False  # fewer rows at low rates, so that all runs take about as long
    temperature: float = 0.0  # of all requests
    about: dict[str, Any] = field(default_factory=dict)  # a run that goes on has it in common with its beginning
    say: Callable[[str], None] = print

    def told(self) -> dict[str, Any]:
        """What results say of it."""
        return self.about | ({"temperature": self.temperature} if self.temperature else {})

    def rows_at(self, share: float) -> int:
        rows = len(self.prepared.prompts)
        wanted = round(rows * share / max(RATES)) if self.equal_times else rows
        return min(rows, max(ROWS_MIN, wanted))


def compare(
    plan: Plan,
    found: dict[str, Any] | None = None,
    keep: Callable[[dict[str, Any]], None] = lambda state: None,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Everything that was measured, as JSON. `found` goes on where it ended; `keep` gets the state after each run.

    Raises:
        InputError: E_USAGE when `found` is of another load or other options, E_TRACE for a load without a rate.
    """
    load = plan.prepared.load
    check_rate(load)
    result = begin(plan) if found is None else _resumed(plan, found)
    goal = Goal(**result["goal"])
    most = result["saturation_requests_per_s"]
    keep(result)
    for case in _cases(plan)[len(result["runs"]) :]:
        if stop():
            return result
        repetition, share, policy = case
        ran = _at_rate(plan, policy, share, most)
        one = {"repetition": repetition, "rate_share": share, "policy": policy, **figures(ran, goal)}
        result["runs"].append(one | {"experts_sha256": _digest(ran)})
        plan.say(_line(one))
        _finish(plan, result)
        keep(result)
    return result


def _cases(plan: Plan) -> list[tuple[int, float, str]]:
    """Repetition, share, policy; the policies take turns in another order each time."""
    cases = []
    for repetition in range(plan.repetitions):
        shift = repetition % len(plan.policies)
        for share in plan.rates:
            cases += [(repetition, share, policy) for policy in [*plan.policies[shift:], *plan.policies[:shift]]]
    return cases


def begin(plan: Plan) -> dict[str, Any]:
    """Goals, and the rate that the base policy keeps up with; no run yet.

    Raises:
        InputError: E_TRACE when the engine takes none of its requests.
    """
    load = plan.prepared.load
    if load.dropped:
        plan.say(f"{len(load.rows)} rows; {load.dropped} of the trace do not fit the context or write nothing")
    most = saturation(plan)
    if not most:
        raise InputError("E_TRACE", load.name, "requests", "none that the engine took", "some that fit it")
    usual, more = _alone(plan) if plan.calm is None else _calm(plan, plan.calm, most)
    goal = plan.goal or usual
    plan.say(f"{BASE} does {most:.2f} requests/s at most")
    plan.say(f"goals: the first token after {goal.ttft_s:.3f} s, then {goal.tpot_s:.4f} s a token")
    return {
        "about": plan.told(),
        "load": plan.prepared.summary(),
        "machine": {"system": platform.platform(), "cores": os.cpu_count(), "python": platform.python_version()},
        "saturation_requests_per_s": most,
        "alone": more,
        "goal": asdict(goal),
        "done": False,
        "runs": [],
    }


def _resumed(plan: Plan, found: dict[str, Any]) -> dict[str, Any]:
    for name, expected in (("about", plan.told()), ("load", plan.prepared.summary())):
        if found.get(name) != expected:
            what = {key: value for key, value in (found.get(name) or {}).items() if expected.get(key) != value}
            raise InputError("E_USAGE", "outrider bench serve", f"results so far: {name}", str(what)[:200], "the same")
    return found


def _finish(plan: Plan, result: dict[str, Any]) -> None:
    rows = summary(result["runs"])
    result["rows_at"] = {f"{share:g}": plan.rows_at(share) for share in plan.rates}
    result["summary"], result["table"] = rows, markdown(rows)
    result["texts_equal"] = _texts_equal(result["runs"])
    result["done"] = len(result["runs"]) == len(_cases(plan))


def _texts_equal(runs: list[dict[str, Any]]) -> bool:
    """Whether all policies had the same experts for the same requests, where none was refused."""
    by_rate: dict[float, set[str]] = {}
    for one in runs:
        if not one["rejected"] and one["policy"] != LAYERWISE:
            by_rate.setdefault(one["rate_share"], set()).add(one["experts_sha256"])
    return all(len(digests) == 1 for digests in by_rate.values())


def saturation(plan: Plan) -> float:
    """Requests per second that the base policy finishes when all are there from the beginning."""
    prepared = plan.prepared
    result = _run(plan, BASE, prepared, [0.0] * len(prepared.prompts), patient=True)
    done = sum(record.finish == "length" for record in result.records)
    return done / result.seconds


def routes(plan: Plan) -> list[list[int]]:
    """The experts of each request's tokens."""
    prepared = plan.prepared
    result = _run(plan, BASE, prepared, [0.0] * len(prepared.prompts), patient=True)
    return [record.experts for record in result.records]


def _alone(plan: Plan) -> tuple[Goal, dict[str, float]]:
    """Goals from requests that have the machine to themselves."""
    engine, rejected = plan.open_engine(BASE)
    ttft, tpot = [], []
    rows = list(zip(plan.prepared.prompts, plan.prepared.load.rows, strict=True))[:ALONE]
    try:
        for prompt, row in rows:
            lengths, how = [max(row.written_tokens, 2)], {"limit_s": 600, "temperature": plan.temperature}
            record = run(engine, rejected, [prompt], lengths, [0.0], **how).records[0]
            if record.first_s is not None:
                ttft.append(record.first_s)
                tpot.append(time_per_token(record) or 0.0)
    finally:
        engine.close()
    found = {"ttft_s_p95": percentile(ttft, 0.95) or 0.0, "tpot_s_median": percentile(tpot, 0.5) or 0.0}
    goal = Goal(plan.factors[0] * found["ttft_s_p95"], plan.factors[1] * found["tpot_s_median"])
    return goal, found | {"requests": len(rows), "ttft_factor": plan.factors[0], "tpot_factor": plan.factors[1]}


def _calm(plan: Plan, share: float, most: float) -> tuple[Goal, dict[str, float]]:
    """Goals from medians of the base policy where little has to wait."""
    found = figures(_at_rate(plan, BASE, share, most), Goal(math.inf, math.inf))
    ttft, tpot = found["ttft_s_median"] or 0.0, found["tpot_s_median"] or 0.0
    more = {"rate_share": share, "requests": found["done"], "ttft_s_median": ttft, "tpot_s_median": tpot}
    goal = Goal(plan.factors[0] * ttft, plan.factors[1] * tpot)
    return goal, more | {"ttft_factor": plan.factors[0], "tpot_factor": plan.factors[1]}


def _at_rate(plan: Plan, policy: str, share: float, most: float) -> RunResult:
    prepared = plan.prepared.first(plan.rows_at(share))
    rate = prepared.load.rate
    if math.isinf(rate):  # these few arrive together, the others do not
        rate = plan.prepared.load.rate
    stretch = rate / (share * most)
    return _run(plan, policy, prepared, [row.arrival_s * stretch for row in prepared.load.rows])


def _run(plan: Plan, policy: str, prepared: Prepared, due_s: list[float], *, patient: bool = False) -> RunResult:
    engine, rejected = plan.open_engine(policy)
    limit = 600 + LIMIT_FACTOR * due_s[-1]
    lengths = [row.written_tokens for row in prepared.load.rows]
    try:
        how = {"limit_s": limit, "patient": patient, "temperature": plan.temperature}
        return run(engine, rejected, prepared.prompts, lengths, due_s, **how)
    finally:
        engine.close()


def _digest(result: RunResult) -> str:
    """Of the experts of all requests: equal over policies, unless one refused a request."""
    digest = hashlib.sha256()
    for record in result.records:
        digest.update(bytes(record.experts) + b"\xff")
    return digest.hexdigest()


def _line(one: dict[str, Any]) -> str:
    ttft, tpot = one["ttft_s_mean"] or 0, one["tpot_s_mean"] or 0
    good = one["goodput_tokens_per_s"]
    times = f"first {1000 * ttft:.0f} ms, then {1000 * tpot:.1f} ms"
    head = f"{one['rate_share']:g} {one['policy']:>14} #{one['repetition']}"
    return f"{head}: {good:.1f} good tokens/s, {times}, {one['rejected']} refused"
