"""Runs one case eagerly, recorded, covered and flushed, and says whether the bits agree."""

from dataclasses import dataclass, field

import equality
import torch
from cases import DATABASES, comparable
from skips import MODULE_SKIPS, OPERATOR_SKIPS, OPTIMIZER_SKIPS

RECORDED_AND_COVERED_STEPS = 6
FLUSHED_STEPS = 4

SKIPS = {"op": OPERATOR_SKIPS, "module": MODULE_SKIPS, "optim": OPTIMIZER_SKIPS}


class Raised(list):
    """Stands for a step's results when it raised: [type, message]."""


@dataclass
class Verdict:
    """What was found out about one entry.

    samples     how many samples ran
    covered     how many of them had device ops run by the graph runner
    layouts     how many are compared in everything but their values, because eager is not deterministic
    failures    one line per disagreement
    raised      samples for which eager raises: only type and message are compared
    by_itself   samples whose eager run differs from another eager run: described, not compared
    """

    database: str
    entry: str
    samples: int = 0
    covered: int = 0
    layouts: int = 0
    raised: int = 0
    by_itself: int = 0
    failures: list = field(default_factory=list)


def _steps(subject, step, count, values):
    results = []
    for _ in range(count):
        subject.before()
        try:
            step()
            results.append(comparable(subject, values))
        except Exception as error:
            results.append(Raised([type(error).__name__, str(error)]))
    return results


def run_eager(case, count, values):
    """One list of results per step, in plain PyTorch."""
    subject = case.start()
    return _steps(subject, subject.step, count, values)


def run_coexec(case, count, values, **options):
    """The same with the step co-executed; returns (results, rows)."""
    import outrider

    subject = case.start()
    with equality.fresh_core(**options):
        results = _steps(subject, outrider.coexec(subject.step), count, values)
        rows = outrider.report()
    return results, rows


def first_difference(expected, actual):
    """Describes the first step and value in which two runs differ, or returns None."""
    for number, (left, right) in enumerate(zip(expected, actual, strict=True)):
        if len(left) != len(right):
            return f"step {number}: {str(left)[:150]} against {str(right)[:150]}"
        for place, (a, b) in enumerate(zip(left, right, strict=True)):
            if not equality.same(a, b):
                return f"step {number}, value {place}: {equality.describe(a, b)}"
    return None


def check_case(case, verdict):
    """Runs `case` in all modes and enters what it shows into `verdict`."""
    values = case.compares_values
    eager = run_eager(case, RECORDED_AND_COVERED_STEPS, values)
    if first_difference(eager, run_eager(case, RECORDED_AND_COVERED_STEPS, values)):
        verdict.by_itself += 1
        values = False
        eager = run_eager(case, RECORDED_AND_COVERED_STEPS, values)
    verdict.samples += 1
    verdict.layouts += not case.compares_values
    verdict.raised += any(isinstance(result, Raised) for result in eager)
    covered, rows = run_coexec(case, RECORDED_AND_COVERED_STEPS, values)
    found = first_difference(eager, covered)
    if found:
        verdict.failures.append(f"{case.name} covered, {found}")
    if any(row["covered_ops"] > 0 for row in rows):
        verdict.covered += 1
    flushed, _ = run_coexec(case, FLUSHED_STEPS, values, flush="every")
    found = first_difference(eager[:FLUSHED_STEPS], flushed)
    if found:
        verdict.failures.append(f"{case.name} flushed, {found}")


def entries(database):
    """(name, info) of the entries that are not on the skip list."""
    list_entries, _ = DATABASES[database]
    return [(name, info) for name, info in list_entries() if name not in SKIPS[database]]


def check_entry(database, name, info, samples_max):
    """Runs the first samples of one entry; returns its Verdict."""
    verdict = Verdict(database, name)
    _, make_cases = DATABASES[database]
    default_dtype = torch.get_default_dtype()
    try:
        for case in make_cases(name, info, samples_max):
            check_case(case, verdict)
    finally:
        torch.set_default_dtype(default_dtype)
    return verdict
