"""Programs that do with Python what a step does not expect: yields, caught exceptions, hooks, threads, finalizers."""

import copy
import gc
import io
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scenarios import STEPS, Bench, check, finish, registers, run_twins
from torch import nn
from torch.utils.checkpoint import checkpoint

pytestmark = pytest.mark.timeout(120)

PROGRAMS = {}
program = registers(PROGRAMS)


@program
def generator_that_yields_in_mid_step(bench):
    """Layers run as a generator is advanced; one is left unfinished and closed in a later step."""
    left = []

    def layers(x):
        try:
            for layer in bench.net:
                x = layer(x)
                yield x
        finally:
            bench.log.append("closed")

    def step(i):
        features, labels = bench.batch()
        bench.optimizer.zero_grad()
        run = layers(features)
        states = [next(run), next(run)]
        if i % 4 == 3:
            left.append(run)
            if len(left) > 1:
                left.pop(0).close()
            return states[1].detach().sum()
        *_, last = run
        return finish(bench, F.cross_entropy(last, labels) + 0.01 * states[0].square().mean())

    return step


@program
def exceptions_caught_inside(bench):
    """Operators that raise, half-done in-place work, and an exception that keeps tensors alive in its traceback."""
    kept = []

    def fails(x):
        y = x * 2
        y.add_(1)
        return y @ torch.ones(4, 4)  # shapes do not fit

    def step(i):
        features, labels = bench.batch()
        bench.optimizer.zero_grad()
        hidden = bench.net[0](features)
        try:
            hidden = hidden + fails(hidden)
        except RuntimeError as error:
            kept[:] = [error] if i % 3 else []
            hidden = hidden * 1.5
        try:
            if i % 5 == 4:
                raise KeyError(float(hidden.sum()))
        except KeyError as error:
            bench.log.append(error.args[0])
        return finish(bench, F.cross_entropy(bench.net[1:](hidden), labels))

    return step


class SavesAndScales(torch.autograd.Function):
    """Saves its input, a result and a number; its backward calls others."""

    @staticmethod
    def forward(ctx, x, scale):
        y = (x * scale).sin()
        ctx.save_for_backward(x, y)
        ctx.scale = scale
        return y

    @staticmethod
    def backward(ctx, grad):
        x, y = ctx.saved_tensors
        with torch.enable_grad():
            again = x.detach().requires_grad_()
            (inner,) = torch.autograd.grad((again * ctx.scale).sin().sum(), again)
        return grad * inner + 0.1 * y, None


@program
def custom_function_whose_saved_tensor_changes(bench):
    """Every fourth step writes to what was saved: eager raises, the program catches and goes on."""

    def step(i):
        features, labels = bench.batch()
        bench.optimizer.zero_grad()
        hidden = bench.net[0](features)
        out = SavesAndScales.apply(hidden, 0.5 + 0.01 * i)
        loss = F.cross_entropy(bench.net[1:](out), labels)
        if i % 4 == 3:
            with torch.no_grad():
                hidden.mul_(2)
        try:
            loss.backward()
            bench.optimizer.step()
        except RuntimeError as error:
            bench.log.append("modified by an inplace operation" in str(error))
        return loss

    return step


@program
def aliases_written_in_turn(bench):
    """Views of one buffer, written through base, view, chunk and data, with and without history."""
    state = torch.zeros(5, 8)
    rows = list(state.unbind(0))
    bench.extra["state"] = state

    def step(i):
        features, labels = bench.batch()
        bench.optimizer.zero_grad()
        hidden = bench.net[0](features)
        rows[i % 5].add_(hidden.detach()[0])
        state.T[i % 8].mul_(0.5)
        base = hidden * 1.0
        left, right = base[:, :4], base[:, 4:]
        left += right.detach()
        base[1:3].mul_(1.5)
        state.data[i % 5 :].sub_(0.01)
        base.view(-1)[::3] = state.reshape(-1)[::3]
        out = bench.net[1:](base + state)
        return finish(bench, F.cross_entropy(out, labels))

    return step


@program
def hooks_that_change_gradients(bench):
    """Tensor hooks, post-accumulate hooks and module hooks, put on and taken off again."""
    handles = []

    def step(i):
        features, labels = bench.batch()
        bench.optimizer.zero_grad()
        if i % 6 == 2:
            handles.append(bench.weight().register_hook(lambda g: g * 0.5))
            handles.append(bench.net[4].weight.register_post_accumulate_grad_hook(lambda p: p.grad.clamp_(-0.01, 0.01)))
            handles.append(bench.net[1].register_forward_hook(lambda m, a, out: out * 1.01))
        if i % 6 == 5:
            while handles:
                handles.pop().remove()
        hidden = bench.net[0](features)
        if i % 5 == 3:
            hidden.register_hook(lambda g: bench.log.append(g.sum().item()) or g + 0.01)
        return finish(bench, F.cross_entropy(bench.net[1:](hidden), labels))

    return step


@program
def branches_that_change(bench):
    """Another branch each three steps, by a host number, by a value, and by the shape that data decides."""

    def step(i):
        features, labels = bench.batch()
        bench.optimizer.zero_grad()
        hidden = bench.net[0](features)
        if (i // 3) % 2:
            hidden = hidden.relu() if i % 2 else hidden.sigmoid()
        if hidden.mean() > 0:
            hidden = hidden - hidden.mean()
        chosen = features[features[:, 0] > 0]
        extra = chosen.square().sum() * bench.net[0].bias.sum()
        positions = torch.nonzero(hidden.detach() > 0.2)
        bench.log.append((len(chosen), len(positions)))
        return finish(bench, F.cross_entropy(bench.net[1:](hidden), labels) + 0.01 * extra)

    return step


@program
def threads_that_use_tensors_of_the_step(bench):
    """A pool computes with pending values, and returns tensors that the step goes on with."""
    pool = ThreadPoolExecutor(2)

    def step(i):
        features, labels = bench.batch()
        bench.optimizer.zero_grad()
        hidden = bench.net[0](features)
        values = hidden.detach()
        norms = list(pool.map(lambda k: (values[k] * 2).norm().item(), range(5)))
        shift = pool.submit(lambda: values.exp().mean(0)).result()
        bench.log.append(norms)
        loss = finish(bench, F.cross_entropy(bench.net[1:](hidden + shift), labels))
        if i % 4 == 1:
            thread = threading.Thread(target=lambda: bench.weight().data.mul_(0.99))
            thread.start()
            thread.join()
        return loss

    return step


@program
def finalizers_and_weak_references(bench):
    """Objects whose end is noted; tensors that a finalizer reads and writes."""
    total = torch.zeros(())
    bench.extra["total"] = total

    class Guard:
        def __init__(self, tensor):
            self.tensor = tensor

        def __del__(self):
            total.add_(self.tensor.sum())

    def step(i):
        features, labels = bench.batch()
        bench.optimizer.zero_grad()
        hidden = bench.net[0](features)
        guard = Guard(hidden.detach())
        gone = weakref.ref(guard)
        loss = F.cross_entropy(bench.net[1:](hidden), labels)
        if i % 2:
            del guard
            bench.log.append(gone() is None)
        else:
            guard.me = guard
            del guard
        finish(bench, loss)
        gc.collect(1)
        bench.log.append(total.item())
        return loss

    return step


@program
def copies_and_saving_in_mid_step(bench):
    """deepcopy of a parameter and of the module, torch.save and load, state dict loaded again."""
    saved = []

    def step(i):
        features, labels = bench.batch()
        bench.optimizer.zero_grad()
        hidden = bench.net[0](features)
        twin = copy.deepcopy(bench.net) if i % 3 == 2 else bench.net
        weight = copy.deepcopy(bench.weight())
        out = bench.net[1:](hidden) + 0.1 * twin[4](twin[1](hidden.detach())).detach()
        if i % 4 == 1:
            file = io.BytesIO()
            state = {"net": bench.net.state_dict(), "optimizer": bench.optimizer.state_dict()}
            torch.save(state | {"hidden": hidden.detach()}, file)
            saved[:] = [file.getvalue()]
        loss = finish(bench, F.cross_entropy(out, labels) + weight.detach().sum() * 0)
        if i % 5 == 4 and saved:
            found = torch.load(io.BytesIO(saved[0]))
            bench.log.append(found["hidden"].sum().item())
            bench.net.load_state_dict(found["net"])
        return loss

    return step


@program
def checkpointed_parts(bench):
    """Activation checkpointing, both kinds, with dropout inside."""

    def step(i):
        features, labels = bench.batch()
        bench.optimizer.zero_grad()
        features.requires_grad_()
        hidden = checkpoint(bench.net[:2], features, use_reentrant=i % 4 == 3)
        out = checkpoint(bench.net[2:], hidden, use_reentrant=False)
        return finish(bench, F.cross_entropy(out, labels))

    return step


@program
def random_operators_with_generators(bench):
    """Generators of the program's own, their states saved, set and forked in mid-step."""
    own, other = torch.Generator().manual_seed(3), torch.Generator().manual_seed(4)

    def step(i):
        features, labels = bench.batch()
        bench.optimizer.zero_grad()
        state = own.get_state()
        noise = torch.randn(5, 6, generator=own)
        again = torch.empty(5, 6).normal_(generator=own)
        if i % 3 == 0:
            own.set_state(state)
        mask = torch.bernoulli(torch.full((5, 6), 0.5), generator=other)
        order = torch.randperm(5, generator=other)
        with torch.random.fork_rng():
            torch.manual_seed(i)
            noise = noise + torch.rand(5, 6)
        pick = torch.multinomial(features.softmax(1), 2, generator=own).float()
        x = (features + 0.1 * noise * mask + 0.01 * again)[order]
        return finish(bench, F.cross_entropy(bench.net(x) + pick.mean(), labels[order]))

    return step


@pytest.mark.parametrize("mode", ["auto", "inner", "early"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_program(mode, name):
    check(PROGRAMS[name], mode)


@pytest.mark.parametrize("mode", ["auto", "early"])
def test_tensors_that_live_across_steps(mode):
    """A truncated recurrence: hidden state with history goes from step to step, and backward comes every third."""

    def make(bench):
        cell = nn.GRUCell(6, 8)
        readout = bench.net[4]
        carried = [torch.zeros(5, 8), []]
        bench.models["cell"] = cell

        def step(i):
            features, labels = bench.batch()
            carried[0] = cell(features, carried[0])
            carried[1].append(F.cross_entropy(readout(carried[0]), labels))
            if i % 3 == 2:
                torch.stack(carried[1]).mean().backward()
                with torch.no_grad():
                    for p in [*cell.parameters(), *readout.parameters()]:
                        p.sub_(p.grad, alpha=0.1)
                        p.grad = None
                carried[0], carried[1] = carried[0].detach(), []
            return carried[0].detach().sum()

        return step

    check(make, mode, steps=STEPS + 4)


@pytest.mark.parametrize("mode", ["auto", "inner"])
def test_step_called_from_a_generator(mode):
    """A training loop that is itself a generator, advanced and closed by the caller."""

    def drive(wrap):
        bench = Bench(lambda bench: lambda i: bench.train())
        step = wrap(bench.step)

        def loop():
            for i in range(STEPS):
                bench.log.append(step(i).item() + np.float64(i))
                yield i

        run = loop()
        for i in run:
            if i == STEPS - 2:
                run.close()
        return bench

    run_twins(drive, mode)
