"""Equality harness: run a program eagerly and co-executed, then list every bit that differs."""

import contextlib
from dataclasses import dataclass, field

import numpy as np

LANES = ("inner", "outer")


@dataclass
class Outcome:
    """What one run left behind.

    losses  what each step returned, as Python numbers
    state   Program.state() at the end, name -> value
    rows    one report row per step, in order (empty for eager runs)
    error   (type, message) of the exception that ended the run, or None
    """

    losses: list
    state: dict
    rows: list = field(default_factory=list)
    error: tuple | None = None


@contextlib.contextmanager
def core_options(**options):
    """Sets Outrider's options for a block and puts the previous ones back."""
    import outrider

    previous = outrider.options(**options)
    try:
        yield
    finally:
        outrider.options(**previous)


@contextlib.contextmanager
def fresh_core(**options):
    """A core without traces, plans or rows, with `options` set; left and emptied at the end."""
    import outrider
    from outrider import _core

    _core.reset()
    _core.clear_rows()
    with core_options(**options):
        try:
            yield
            outrider.flush()
        finally:
            _core.leave()
            _core.reset()


def plain_number(value):
    """Returns a tensor's or a number's Python value."""
    return value.item() if hasattr(value, "item") else value


def run_steps(step, steps, resume=False):
    """Calls `step(i)` for each i; returns (losses, error).

    An exception is data: it ends the run and becomes `error`, or with `resume` its type and
    message stand in the list of losses and the next step follows.
    """
    losses = []
    for i in range(steps):
        try:
            losses.append(step(i))
        except (Exception, KeyboardInterrupt) as error:
            if not resume:
                return losses, (type(error), str(error))
            losses.append(f"{type(error).__name__}: {error}")
    return losses, None


def run_eager(build, steps, resume=False):
    """Builds the program and runs it in plain PyTorch."""
    program = build()
    losses, error = run_steps(program.step, steps, resume)
    return Outcome([plain_number(loss) for loss in losses], program.state(), error=error)


def run_coexec(build, steps, resume=False, **options):
    """Builds the program and runs it with its step co-executed under `options`."""
    import outrider

    program = build()
    with fresh_core(**options):
        losses, error = run_steps(outrider.coexec(program.step), steps, resume)
        outrider.flush()
        rows = outrider.report()
        losses = [plain_number(loss) for loss in losses]
        state = program.state()
    return Outcome(losses, state, rows, error)


def run(build, steps, *, coexec, **options):
    """Runs `build()` for `steps` steps, co-executed or not."""
    return run_coexec(build, steps, **options) if coexec else run_eager(build, steps)


def _numbers(tensor):
    kinds = {"torch.bfloat16": np.uint16, "torch.bool": np.bool_}
    kind = kinds.get(tensor.dtype) or np.dtype(tensor.dtype.removeprefix("torch."))
    return np.frombuffer(tensor.data, dtype=kind)


def _describe_tensors(left, right):
    for name in ("dtype", "shape", "stride", "requires_grad"):
        if getattr(left, name) != getattr(right, name):
            return f"{name} {getattr(left, name)} against {getattr(right, name)}"
    a, b = _numbers(left), _numbers(right)
    bytes_a, bytes_b = (numbers.view(np.uint8).reshape(len(numbers), -1) for numbers in (a, b))
    unequal = np.flatnonzero((bytes_a != bytes_b).any(axis=1))
    first = unequal[0]
    return f"{len(unequal)} of {len(a)} elements, first [{first}]: {a[first]} against {b[first]}"


def describe(left, right):
    """Says in one line how two unequal state values differ."""
    if hasattr(left, "stride") and hasattr(right, "stride"):
        return _describe_tensors(left, right)
    if isinstance(left, list) and isinstance(right, list):
        pairs = enumerate(zip(left, right, strict=False))
        first = next((i for i, (a, b) in pairs if not same(a, b)), min(len(left), len(right)))
        lengths = f"lists of {len(left)} and {len(right)}"
        return f"{lengths} differ from [{first}]: {left[first : first + 2]} against {right[first : first + 2]}"
    return f"{str(left)[:120]} against {str(right)[:120]}"


def same(left, right):
    """Equality of plain values in which a NaN equals itself, also inside lists, tuples and dicts."""
    if isinstance(left, float) and isinstance(right, float):
        return np.float64(left).tobytes() == np.float64(right).tobytes()
    if type(left) is not type(right):
        return False
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    return bool(left == right)


def differences(eager, other):
    """Lists everything in which two outcomes differ; empty means bit for bit equal."""
    found = []
    if eager.error != other.error:
        found.append(f"error: {eager.error} against {other.error}")
    if not same(eager.losses, other.losses):
        found.append(f"losses: {describe(eager.losses, other.losses)}")
    for key in sorted(eager.state.keys() | other.state.keys()):
        if key not in eager.state or key not in other.state:
            found.append(f"{key}: only in the {'eager' if key in eager.state else 'other'} run")
        elif not same(eager.state[key], other.state[key]):
            found.append(f"{key}: {describe(eager.state[key], other.state[key])}")
    return found


def assert_equal(eager, other):
    """Fails with the list of differences when two outcomes are not bit for bit equal."""
    found = differences(eager, other)
    assert not found, f"{len(found)} differences:\n  " + "\n  ".join(found[:20])


def covered_share(rows, first_step=20):
    """Returns the share of device ops that the graph runner executed from `first_step` on."""
    late = rows[first_step:]
    assert late, f"only {len(rows)} report rows, none after step {first_step}"
    device_ops = sum(row["device_ops"] for row in late)
    assert device_ops > 0, "the report counts no device op at all"
    return sum(row["covered_ops"] for row in late) / device_ops


def lanes_used(rows, first_step=20):
    """Returns lane -> number of steps from `first_step` on."""
    counts = {}
    for row in rows[first_step:]:
        counts[row["lane"]] = counts.get(row["lane"], 0) + 1
    return counts


def why_not(rows, first_step=20):
    """Summarises divergences, inline ops and notes for a failed coverage assertion."""
    reasons = {}
    for row in rows[first_step:]:
        labels = [
            f"{d['code']} {d.get('field', '')} {d.get('expected', '')}->{d.get('got', '')}" for d in row["divergences"]
        ]
        labels += [f"inline {op}" for op in row["inline_ops"]]
        labels += [row["note"]] if row["note"] else []
        for label in labels:
            reasons[label] = reasons.get(label, 0) + 1
    ranked = sorted(reasons.items(), key=lambda item: -item[1])
    return "; ".join(f"{count}x {label}" for label, count in ranked[:12])
