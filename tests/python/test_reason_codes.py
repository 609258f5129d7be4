"""Every documented reason code is issued by a small program that deserves it."""

import functools
import os
import subprocess
import sys

import equality
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from outrider.explain import summary_lines
from outrider.reasons import REASONS
from scenarios import ODD_STEP, STEPS, Bench
from torch.utils._python_dispatch import TorchDispatchMode

pytestmark = pytest.mark.timeout(120)

SLOW = {"runner_delay_us": 500}


def run(step, steps=STEPS, **options):
    """Runs `step(bench, i)` as the co-executed step of a bench; returns the rows."""
    build = functools.partial(Bench, lambda bench: functools.partial(step, bench), "adamw", None)
    return equality.run_coexec(build, steps, resume=True, **options).rows


def behind_training(action, always=False, **options):
    """A program that trains and then calls `action(bench)`, in each step or in one."""

    def step(bench, i):
        loss = bench.train()
        if always or i == ODD_STEP:
            action(bench)
        return loss

    return functools.partial(run, step, **options)


def training_on(prepare, **options):
    """A program whose loss is that of `prepare(bench, odd, features)`, the features as the net shall get them."""

    def step(bench, i):
        features, labels = bench.batch()
        bench.optimizer.zero_grad()
        features = prepare(bench, i == ODD_STEP, features)
        loss = F.cross_entropy(bench.net(features), labels[: len(features)])
        loss.backward()
        bench.optimizer.step()
        return loss

    return functools.partial(run, step, **options)


@torch.library.custom_op("outrider_tests::halved", mutates_args=())
def halved(x: torch.Tensor) -> torch.Tensor:
    """An operator that torch does not know."""
    return x / 2


class Watching(TorchDispatchMode):
    """A mode that sees each operator and changes nothing."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Passes on."""
        return func(*args, **(kwargs or {}))


class Twice(torch.autograd.Function):
    """A function that only Python knows."""

    @staticmethod
    def forward(context, x):
        """Doubles."""
        return x * 2

    @staticmethod
    def backward(context, gradient):
        """Doubles."""
        return gradient * 2


def fork_and_wait(_):
    """A child that does nothing."""
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)


def keep_alias(bench):
    """A numpy array over a parameter that stays."""
    bench.alias = bench.weight().detach().numpy()


def call_flush(_):
    """An explicit wait."""
    import outrider

    outrider.flush()


def read_between_steps():
    """The loss is read where no step is under way."""
    import outrider

    bench = Bench(lambda bench: lambda i: bench.train())
    with equality.fresh_core(**SLOW):
        step = outrider.coexec(bench.step)
        for i in range(STEPS):
            step(i).item()
        return outrider.report()


def backward_with(always, **flags):
    """Engine flags in one step, or in each."""

    def step(bench, i):
        bench.optimizer.zero_grad()
        loss = bench.loss()
        loss.backward(**(flags if always or i == ODD_STEP else {}))
        bench.optimizer.step()
        return loss

    return functools.partial(run, step)


def sum_of_two(bench, odd, features):
    """Two results of one kind, in one order or the other."""
    a, b = features * 2, features * 3
    return b + a if odd else a + b


def last_batch(bench, odd, features):
    """A batch that is smaller than the others."""
    return (torch.from_numpy(np.random.randn(3, 6).astype(np.float32)) if odd else features) * 2


def without_gradients(bench, odd, features):
    """The same operator in another mode."""
    with torch.set_grad_enabled(not odd):
        return features * 2


def raw_read_in_mid_step(bench, i):
    """A parameter's memory is used, and the optimizer still has to write to it."""
    bench.optimizer.zero_grad()
    loss = bench.loss()
    loss.backward()
    if i == ODD_STEP:
        bench.log.append(bench.weight().data_ptr() % 16)
    bench.optimizer.step()
    return loss


def raising(bench, i):
    """One step raises."""
    loss = bench.loss()
    if i == ODD_STEP:
        raise ValueError("the program's own")
    return loss.detach()


def ending_early(bench, i):
    """One step has no backward."""
    bench.optimizer.zero_grad()
    loss = bench.loss()
    if i == ODD_STEP:
        return None
    loss.backward()
    bench.optimizer.step()
    return loss


def hooked(bench, i):
    """A hook on a parameter."""
    if i == 0:
        bench.weight().register_hook(lambda gradient: gradient * 0.5)
    return bench.train()


def without_gradient(bench, i):
    """A parameter takes part in the loss, but no gradient arrives at it."""
    bench.scale = getattr(bench, "scale", torch.nn.Parameter(torch.ones(6)))
    _, mean, _ = torch.native_group_norm(bench.batch()[0], bench.scale, None, 5, 6, 1, 2, 1e-5)
    loss = mean.sum()
    loss.backward()
    assert bench.scale.grad is None
    return loss.detach()


def growing(bench, i):
    """No two steps have the same shapes."""
    features = torch.from_numpy(np.random.randn(i + 1, 6).astype(np.float32))
    return bench.net(features).sum().detach()


def watched(bench, i):
    """A dispatch mode around the step."""
    with Watching():
        return bench.train()


def drawing_by_value(bench, odd, features):
    """Random numbers whose distribution depends on values."""
    return features * torch.bernoulli(features.sigmoid())


def history_from_outside(bench, i):
    """An input with a graph of its own, made before the step."""
    bench.before = getattr(bench, "before", bench.weight() * 2)
    return (bench.before.sum() * 0.5).detach() + bench.train().detach()


PROGRAMS = {
    "FLUSH_FETCH": functools.partial(run, lambda bench, i: bench.train().item()),
    "FLUSH_RAW_ACCESS": behind_training(lambda bench: bench.weight().detach().numpy().sum(), always=True),
    "FLUSH_FOREIGN_OP": behind_training(lambda bench: halved(bench.weight().detach()), always=True),
    "FLUSH_DATA_DEPENDENT": behind_training(lambda bench: bench.weight().gt(0).nonzero(), always=True),
    "FLUSH_FLAG": behind_training(lambda bench: torch.set_num_threads(1), **SLOW),
    "FLUSH_ESCAPED": behind_training(keep_alias),
    "FLUSH_RECORD": behind_training(lambda bench: bench.weight().detach().erfinv(), **SLOW),
    "FLUSH_FORK": behind_training(fork_and_wait, **SLOW),
    "FLUSH_CALLED": behind_training(call_flush, **SLOW),
    "FLUSH_STEP_OUTSIDE": read_between_steps,
    "FLUSH_DEBUG": functools.partial(run, lambda bench, i: bench.train(), flush="every"),
    "DIV_NEW_PATH": training_on(lambda bench, odd, features: features.sin() if odd else features.cos()),
    "DIV_META": training_on(last_batch),
    "DIV_ENV": training_on(without_gradients),
    "DIV_ARGUMENT": training_on(lambda bench, odd, features: features.roll(2 if odd else 1, 0)),
    "DIV_WIRING": training_on(sum_of_two),
    "DIV_BACKWARD": backward_with(False, retain_graph=True),
    "DIV_RAW_ACCESS": functools.partial(run, raw_read_in_mid_step),
    "DIV_EXCEPTION": functools.partial(run, raising),
    "DIV_FORCED": functools.partial(run, lambda bench, i: bench.train(), force_divergence=(ODD_STEP, 3)),
    "DIV_STEP_ENDED": functools.partial(run, ending_early),
    "INNER_HOOK": functools.partial(run, hooked),
    "INNER_PYNODE": training_on(lambda bench, odd, features: Twice.apply(features)),
    "INNER_GRAPH_API": backward_with(True, retain_graph=True),
    "INNER_GRAD_STATE": functools.partial(run, without_gradient),
    "INNER_UNSTABLE": functools.partial(run, growing),
    "INNER_FOREIGN": functools.partial(run, watched),
    "INNER_DATA_DEPENDENT": training_on(drawing_by_value),
    "INNER_HISTORY": functools.partial(run, history_from_outside),
    "INNER_ENV": functools.partial(run, lambda bench, i: bench.train(), graft=0),
    "INNER_OPTION": functools.partial(run, lambda bench, i: bench.train(), lane="inner"),
    "OFF_OPTION": functools.partial(run, lambda bench, i: bench.train(), lane="off"),
}

# These need a process of their own.
PREPARATIONS = {
    "OFF_KEYS": 'library = torch.library.Library("_", "IMPL")\nlibrary.fallback(lambda *_: None, "Fake")',
    "OFF_ENV": "outrider._runtime.core().load()\noutrider._runtime.core().shutdown()",
}


def codes_of(rows):
    """Every code in the rows: flushes, divergences, and those that begin a note."""
    codes = {row["note"].partition(":")[0] for row in rows} - {""}
    for row in rows:
        codes |= row["flushes"].keys() | {divergence["code"] for divergence in row["divergences"]}
    return codes


def test_every_code_has_a_program():
    """No code is documented that nothing issues."""
    assert PROGRAMS.keys() | PREPARATIONS.keys() == REASONS.keys()


@pytest.mark.parametrize("code", PROGRAMS)
def test_program_issues_its_code(code):
    """The code is among the program's, all of which are documented, and explain() puts it into words."""
    rows = PROGRAMS[code]()
    codes = codes_of(rows)
    assert code in codes, f"{codes}: {equality.why_not(rows, 0)}"
    assert codes <= REASONS.keys()
    assert any(line.startswith(f"{code} (") for line in summary_lines(rows))


@pytest.mark.parametrize("code", PREPARATIONS)
def test_process_issues_its_code(code):
    """The step runs plainly, and its row says why."""
    program = f"""
import torch, outrider
{PREPARATIONS[code]}
step = outrider.coexec(lambda: torch.ones(3).sum().item())
assert [step() for _ in range(3)] == [3.0] * 3
rows = outrider.report()
assert [row["lane"] for row in rows] == ["off"] * 3, rows
assert all(row["note"].startswith("{code}: ") for row in rows), rows
outrider.explain()
"""
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=100)
    assert answer.returncode == 0, answer.stderr
    assert f"({code}: " in answer.stdout and f"{code} (3): " in answer.stdout


DETAILS = {
    "DIV_META": ("Float[5,6]", "Float[3,6]"),
    "DIV_ENV": ("on", "off"),
    "DIV_ARGUMENT": ("[1]", "[2]"),
    "DIV_WIRING": ("a result of aten::mul.Tensor", "a result of aten::mul.Tensor"),
    "DIV_NEW_PATH": ("aten::cos", "aten::sin"),
}


@pytest.mark.parametrize("code", DETAILS)
def test_divergence_says_what_and_where(code):
    """What was recorded, what came instead, and the line of the program."""
    divergence = next(item for item in PROGRAMS[code]()[ODD_STEP]["divergences"] if item["code"] == code)
    assert (divergence["expected"], divergence["got"]) == DETAILS[code]
    assert divergence["field"]
    file, _, line = divergence["where"].rpartition(":")
    assert file == __file__ and int(line) > 0
