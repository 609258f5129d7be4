"""Steps that read much memory which others may write to: its copies are bounded, and no bit changes."""

import equality
import numpy as np
import pytest
import torch

pytestmark = pytest.mark.timeout(120)

STEPS, LATE, ESCAPE = 40, 24, 26
EXPERTS, HIDDEN, WIDTH = 4, 256, 512
ONE_EXPERT = HIDDEN * WIDTH * 4  # bytes
LIMIT = 1 << 20


def experts_step(weights, rows, i):
    """Three of four experts one after another, each a view at another place."""
    x = rows
    for k in range(3):
        expert = weights[(i + k) % EXPERTS]
        x = torch.tanh(x @ expert.t() @ expert)
    return x.sum()


def numpy_step(weights, rows, i):
    """One large numpy buffer, read by many operators."""
    x = rows
    for k in range(6):
        x = torch.tanh(x @ weights[k % EXPERTS].t() @ weights[k % EXPERTS]) * (1 + 0.01 * i)
    return x.sum()


def run(call, step, wrap, escape_at):
    """Losses of all steps; from `escape_at` on a numpy view of the weights is alive and written through."""
    torch.manual_seed(0)
    buffer = np.random.default_rng(0).standard_normal((EXPERTS, HIDDEN, WIDTH), dtype=np.float32) * 0.05
    weights = wrap(buffer)
    rows = torch.randn(8, WIDTH)
    step_of = call(step)
    held, losses = None, []
    with torch.no_grad():
        for i in range(STEPS):
            if i == escape_at:
                held = weights.numpy()
            if held is not None and i % 3 == 0:
                held[i % EXPERTS] *= np.float32(0.9)
            losses.append(step_of(weights, rows, i))
    return [loss.item() for loss in losses]


def co_executed(step, wrap, escape_at, **options):
    """The losses, and what coexec reports."""
    import outrider

    with equality.fresh_core(**options):
        losses = run(outrider.coexec, step, wrap, escape_at)
        outrider.flush()
        return losses, outrider.report()


KINDS = {
    "escaped": (experts_step, lambda buffer: torch.from_numpy(buffer).clone(), ESCAPE),
    "numpy": (numpy_step, torch.from_numpy, 0),
}


@pytest.mark.parametrize("kind", KINDS)
def test_without_reaching_the_limit_steps_are_covered(kind):
    """The negative control: the programs below do copy more than the limit that they are given there."""
    step, wrap, escape_at = KINDS[kind]
    losses, rows = co_executed(step, wrap, escape_at)
    assert losses == run(lambda function: function, step, wrap, escape_at)
    late = [row for row in rows[ESCAPE + 2 :] if row["lane"] == "outer"]
    assert late, equality.why_not(rows, LATE)
    assert max(row["copied_bytes"] for row in late) > LIMIT + 2 * ONE_EXPERT


@pytest.mark.parametrize("kind", KINDS)
def test_copies_of_a_step_are_bounded(kind):
    """A step that would copy more goes on without copies, and later ones are not covered."""
    step, wrap, escape_at = KINDS[kind]
    losses, rows = co_executed(step, wrap, escape_at, copied_mib_max=LIMIT >> 20)
    assert losses == run(lambda function: function, step, wrap, escape_at)
    assert max(row["copied_bytes"] for row in rows) <= LIMIT + EXPERTS * ONE_EXPERT
    assert {row["lane"] for row in rows[-4:]} == {"inner"}, [row["lane"] for row in rows]
    assert any("memory that others may write to" in row["note"] for row in rows), {row["note"] for row in rows}
