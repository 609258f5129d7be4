"""Steps that look at other places of their inputs each time: a loop over experts of stacked weights."""

import ctypes
import itertools
import random
import threading

import equality
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scenarios import MODES, Bench
from torch import nn

pytestmark = pytest.mark.timeout(180)

EXPERTS, WIDTH, HIDDEN = 5, 6, 16
STEPS = 44
ODD_STEPS = (30, 31, 37)  # steps with a difficulty, in a program that is covered by then
LATE = 24  # from here on every number of experts has been recorded twice


def stacked_weights():
    """Weights of two layers, [experts, hidden, width] each."""
    return [torch.randn(EXPERTS, HIDDEN, WIDTH) for _ in range(2)]


def some_experts(i):
    """Which experts step `i` takes: one to three of them, in any order."""
    return random.Random(i).sample(range(EXPERTS), 1 + i % 3)


def through_experts(weights, x, experts):
    """Rows [6, width] through the experts, each expert a share of the rows."""
    for w in weights:
        shares = x.chunk(len(experts))
        x = torch.cat([F.silu(rows @ w[e].t()) @ w[e] for e, rows in zip(experts, shares, strict=True)]).tanh()
    return x


def gate():
    """The trained part of the program."""
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH))


def in_place(bench, i):
    """An operator of the step, on a whole weight."""
    bench.weights[0].mul_(0.97)


def in_place_on_view(bench, i):
    """An operator of the step, on one expert."""
    bench.weights[i % 2][i % EXPERTS].add_(0.01)


def through_data(bench, i):
    """`.data` of a weight."""
    bench.weights[1].data.mul_(0.97)


def new_data(bench, i):
    """`.data =` gives a weight another storage."""
    bench.weights[1].data = bench.weights[1].data * 0.97


def through_numpy(bench, i):
    """Bytes written behind torch's back."""
    bench.weights[0].numpy()[:] *= 0.5


def through_storage(bench, i):
    """The same through a storage object of Python: each float becomes 0.0115."""
    bench.weights[0].untyped_storage().fill_(0x3C)


def through_pointer(bench, i):
    """The same through an address, with no operator at all."""
    weight = bench.weights[0]
    floats = (ctypes.c_float * weight.numel()).from_address(weight.data_ptr())
    np.ctypeslib.as_array(floats)[:] *= 0.5


def through_kept_view(bench, i):
    """An expert that the program has held from the beginning."""
    bench.kept.mul_(0.9)


def through_out(bench, i):
    """An operator whose result depends on data writes into an expert."""
    chosen = torch.ones(HIDDEN, WIDTH, dtype=torch.bool)
    torch.masked_select(torch.randn(HIDDEN, WIDTH), chosen, out=bench.weights[0][2].view(-1))


def by_another_thread(bench, i):
    """Bytes written by another thread, while this one waits for it."""
    thread = threading.Thread(target=through_pointer, args=(bench, i))
    thread.start()
    thread.join()


def by_optimizer(bench, i):
    """An optimizer, with gradients from elsewhere."""
    bench.weights[0].grad = torch.full_like(bench.weights[0], 0.1)
    bench.expert_optimizer.step()


WRITES = [
    in_place,
    in_place_on_view,
    through_data,
    new_data,
    through_numpy,
    through_storage,
    through_pointer,
    through_kept_view,
    through_out,
    by_another_thread,
    by_optimizer,
]


class Experts(Bench):
    """A gate that is trained, then experts that are not.

    write  what happens to the experts, or None
    where  "before" the step, "first" in it, in the "middle" of forward, "between" forward and backward, "last"
    when   the steps in which it happens
    """

    def __init__(self, write=None, where="before", when=range(STEPS), trained=True, read=False):
        self.write, self.where, self.when, self.trained, self.read = write, where, when, trained, read
        super().__init__(lambda bench: bench.expert_step, net=gate)
        self.weights = stacked_weights()
        self.kept = self.weights[0][1] if write is through_kept_view else None
        self.expert_optimizer = torch.optim.SGD(self.weights[:1], lr=0.1, momentum=0.9)

    def extras(self):
        """The experts, which no optimizer knows."""
        return {f"weights.{k}": w for k, w in enumerate(self.weights)}

    def at(self, place, i):
        """The write, where it belongs."""
        if self.write is not None and place == self.where and i in self.when:
            with torch.no_grad():
                self.write(self, i)

    def expert_step(self, i):
        """One step, with or without training."""
        self.at("first", i)
        experts = some_experts(i)
        features = torch.from_numpy(np.random.randn(6, WIDTH).astype(np.float32))
        with torch.set_grad_enabled(self.trained):
            x = through_experts(self.weights[:1], self.net(features), experts)
            if self.read:
                self.log.append(x.detach().sum().item())
            self.at("middle", i)
            loss = through_experts(self.weights, x, experts[::-1]).square().mean()
        self.at("between", i)
        if self.trained:
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        self.at("last", i)
        return loss.detach()


def run_steps(program, step, steps):
    """Runs the steps and what happens between them; what eager refuses is a result like any other."""
    losses = []
    for i in range(steps):
        program.at("before", i)
        try:
            losses.append(step(i))
        except RuntimeError as error:
            losses.append(str(error))
    return [equality.plain_number(loss) for loss in losses]


def eager_run(build, steps=STEPS):
    """The program in plain torch."""
    program = build()
    losses = run_steps(program, program.step, steps)
    return equality.Outcome(losses, program.state())


def coexec_run(build, steps=STEPS, **options):
    """The same, co-executed."""
    import outrider

    program = build()
    with equality.fresh_core(**options):
        losses = run_steps(program, outrider.coexec(program.step), steps)
        outrider.flush()
        return equality.Outcome(losses, program.state(), outrider.report())


def twins(build, steps=STEPS, **options):
    """Runs the program both ways and asserts equality."""
    twin = coexec_run(build, steps, **options)
    equality.assert_equal(eager_run(build, steps), twin)
    return twin


WHEN = {"each_step": range(STEPS), "odd_steps": ODD_STEPS}
PLACES = ("before", "first", "middle", "between", "last")


@pytest.mark.parametrize("trained", [True, False], ids=["trained", "forward"])
@pytest.mark.parametrize("mode", MODES)
def test_experts(mode, trained):
    """Every path with any experts is covered, bit for bit."""
    twin = twins(lambda: Experts(trained=trained), **MODES[mode])
    if mode == "inner":
        return
    used = equality.lanes_used(twin.rows, LATE)
    assert used == {"outer": STEPS - LATE}, f"{used}: {equality.why_not(twin.rows, LATE)}"


@pytest.mark.parametrize("read", [False, True], ids=["unread", "read"])
@pytest.mark.parametrize("trained", [True, False], ids=["trained", "forward"])
@pytest.mark.parametrize("when", ["each_step", "odd_steps"])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("write", WRITES)
def test_writes_to_experts(write, place, when, trained, read):
    """Whoever writes to the weights, and whenever: each step sees what eager's step sees."""
    mode = "early" if read else "auto"
    twins(lambda: Experts(write, place, WHEN[when], trained, read), **MODES[mode])


FORCED_STEP = ODD_STEPS[0]
EVENTS_MAX = 200


@pytest.mark.parametrize("read", [False, True], ids=["unread", "read"])
@pytest.mark.parametrize(("write", "place"), [(None, "never"), *itertools.product(WRITES, PLACES[1:4])])
def test_divergence_at_every_event(write, place, read):
    """A step that is replayed reads the weights as they were when its events came, not as they are."""

    def build():
        return Experts(write, place, ODD_STEPS, read=read)

    eager = eager_run(build, FORCED_STEP + 3)
    wrong, forced = {}, 0
    for event in range(EVENTS_MAX):
        twin = coexec_run(
            build, FORCED_STEP + 3, force_divergence=(FORCED_STEP, event), **MODES["early" if read else "auto"]
        )
        if event >= twin.rows[FORCED_STEP]["events"] + 1:
            break
        forced += any(item["code"] == "DIV_FORCED" for item in twin.rows[FORCED_STEP]["divergences"])
        if found := equality.differences(eager, twin):
            wrong[event] = found[:3]
    assert not wrong, f"{len(wrong)} events went wrong: {str(wrong)[:500]}"
    if place != "first":  # where the write itself may end the cover before any event
        assert forced >= (20 if write is None else 2), forced


ONE_EXPERT = HIDDEN * WIDTH * 4  # bytes


@pytest.mark.parametrize("trained", [True, False], ids=["trained", "forward"])
def test_weights_are_read_where_they_lie(trained):
    """Of the inputs, only what comes from numpy is copied."""
    twin = twins(lambda: Experts(trained=trained))
    copied = [row["copied_bytes"] for row in twin.rows[LATE:]]
    assert 0 < max(copied) < ONE_EXPERT, copied


def test_weights_that_escaped_are_copied():
    """Memory that somebody may hold a pointer to is not read later than eager reads it."""
    twin = twins(lambda: Experts(through_numpy, "before", ODD_STEPS[:1]))
    covered = [row for row in twin.rows[ODD_STEPS[0] :] if row["lane"] == "outer"]
    assert covered
    assert min(row["copied_bytes"] for row in covered) >= ONE_EXPERT


def test_views_are_not_waited_for():
    """A step goes on while the last one is under way, although it looks at the same weights."""
    delay_us = 10_000
    twin = twins(lambda: Experts(trained=False), runner_delay_us=delay_us)
    waits = sorted(row["host_wait_us"] for row in twin.rows[LATE:])
    assert waits[len(waits) // 2] < delay_us / 4, waits
