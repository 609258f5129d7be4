"""The world around the operations: flags, random states, nesting, profilers, modes, endless paths."""

import contextlib
import functools
import random
import resource
import shutil

import equality
import pytest
import torch
from scenarios import MODES, ODD_STEP, Bench, check
from torch.utils._python_dispatch import TorchDispatchMode

pytestmark = [pytest.mark.timeout(120), pytest.mark.parametrize("mode", MODES)]


@contextlib.contextmanager
def restored(setter, value, old):
    """Sets a global flag for a block."""
    setter(value)
    try:
        yield
    finally:
        setter(old)


FLAGS = {
    "mkldnn_off": lambda: torch.backends.mkldnn.flags(enabled=False),
    "flush_denormal": lambda: restored(torch.set_flush_denormal, True, False),
    "threads": lambda: restored(torch.set_num_threads, 2, 1),
    "default_dtype": lambda: restored(torch.set_default_dtype, torch.float64, torch.float32),
    "deterministic": lambda: restored(torch.use_deterministic_algorithms, True, False),
    "matmul_precision": lambda: restored(torch.set_float32_matmul_precision, "medium", "highest"),
    "sdp_math_only": lambda: torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
}


@pytest.mark.parametrize("flag", FLAGS)
@pytest.mark.parametrize("always", [True, False], ids=["each_step", "one_step"])
def test_flag_set_around_operations(mode, flag, always):
    """A flag acts on the operations issued under it and on no other."""

    def make(bench):
        tiny = torch.full((4, 6), 1e-39)
        query = torch.linspace(-1, 1, 2 * 4 * 8).view(1, 2, 4, 8)

        def probe():
            hidden = bench.net[0](bench.batch()[0])
            attended = torch.nn.functional.scaled_dot_product_attention(query, query, query)
            return (hidden.sum() + (tiny * 0.5).sum() * 1e38 + torch.ones(3).sum() + attended.sum()).detach()

        def step(i):
            with FLAGS[flag]() if always or i == ODD_STEP else contextlib.nullcontext():
                inside = probe()
            bench.extra[f"probe.{i}"] = torch.stack([inside.double(), probe().double()])
            return bench.train()

        return step

    check(make, mode)


def test_random_state_read_and_set(mode):
    """get_rng_state and set_rng_state in mid-step, and a fork of the generator."""

    def make(bench):
        def step(i):
            before = torch.get_rng_state()
            loss = bench.train()
            bench.log.append(hash(torch.get_rng_state().numpy().tobytes()))
            if i % 3 == 2:
                torch.set_rng_state(before)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(i)
                bench.extra[f"noise.{i}"] = torch.randn(3) + bench.weight().detach()[0, :3]
            return loss

        return step

    check(make, mode)


def test_own_generator(mode):
    """A generator object of the user's."""

    def make(bench):
        generator = torch.Generator().manual_seed(5)

        def step(i):
            with torch.no_grad():
                noise = torch.randn(bench.weight().shape, generator=generator)
                bench.weight().add_(noise, alpha=0.001)
            bench.log.append(torch.randperm(5, generator=generator).tolist())
            bench.extra["generator"] = generator.get_state()
            return bench.train()

        return step

    check(make, mode)


def test_nested_coexecuted_steps(mode):
    """A co-executed function inside a co-executed step belongs to the outer step."""
    import outrider

    def make(bench):
        inner = outrider.coexec(bench.train)

        def step(i):
            inner()
            return inner()

        return step

    check(make, mode)


def test_coexec_twice_is_once(mode):
    """Wrapping a wrapped function changes nothing."""
    import outrider

    build = functools.partial(Bench, lambda bench: lambda i: bench.train())
    eager = equality.run_eager(build, 14)
    bench = build()
    with equality.fresh_core(**MODES[mode]):
        once = outrider.coexec(bench.step)
        twice = outrider.coexec(once)
        assert twice is once
        losses, error = equality.run_steps(twice, 14)
        outrider.flush()
        twin = equality.Outcome([loss.item() for loss in losses], bench.state(), error=error)
    equality.assert_equal(eager, twin)


def test_step_block_is_the_same_as_coexec(mode):
    """`with outrider.step():` around the body."""
    import outrider

    eager = equality.run_eager(functools.partial(Bench, lambda bench: lambda i: bench.train()), 14)
    bench = Bench(lambda bench: lambda i: bench.train())
    with equality.fresh_core(**MODES[mode]):
        losses = []
        for i in range(14):
            with outrider.step(name="train"):
                losses.append(bench.step(i))
        outrider.flush()
        twin = equality.Outcome([loss.item() for loss in losses], bench.state(), outrider.report())
    equality.assert_equal(eager, twin)
    assert len(twin.rows) == 14


def test_program_that_never_settles(mode):
    """Every step takes a path nobody has seen; correct, and memory stays bounded."""
    operations = [torch.sin, torch.cos, torch.tanh, torch.exp, torch.abs, torch.neg]

    def make(bench):
        def step(i):
            x = bench.weight().detach()[:2]
            for _ in range(random.randint(5, 25)):
                x = random.choice(operations)(x).clamp(-3, 3)
            bench.log.append(x.sum().item())
            return bench.train()

        return step

    check(make, mode, steps=60)
    resident_before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    check(make, mode, steps=150)
    grown_mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - resident_before) / 1024
    assert grown_mib < 200, f"resident memory grew by {grown_mib:.0f} MiB"


def test_shapes_that_never_repeat(mode):
    """The same path with another shape in every step."""

    def make(bench):
        def step(i):
            x = torch.ones(i + 1, 6) @ bench.weight().detach().t()
            bench.log.append(x.relu().sum().item())
            return bench.train()

        return step

    check(make, mode, steps=40)


def test_new_branch_late(mode):
    """A branch first taken long after tracing."""

    def make(bench):
        def step(i):
            loss = bench.train()
            if i in (30, 31, 32, 33, 40):
                with torch.no_grad():
                    bench.weight().mul_(0.5).add_(0.01)
            return loss

        return step

    check(make, mode, steps=45)


def test_python_structures_around_tensors(mode):
    """Generators, recursion, early break, dictionaries and exceptions used as control flow."""

    def make(bench):
        def halves(x):
            while x.shape[0] > 1:
                x = x[: x.shape[0] // 2] * 0.5
                yield x

        def depth(x, left):
            return x if left == 0 else depth(torch.tanh(x), left - 1)

        def step(i):
            x = bench.batch()[0]
            parts = dict(enumerate(halves(x)))
            for part in parts.values():
                if part.sum().item() > 0:
                    break
            try:
                raise StopIteration(part)
            except StopIteration as carrier:
                bench.log.append(depth(carrier.value, i % 3).mean().item())
            return bench.train()

        return step

    check(make, mode, steps=24)


class CountingMode(TorchDispatchMode):
    """A user's dispatch mode that counts operators."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


def test_dispatch_mode_inside(mode):
    """A dispatch mode of the user's sees every operator, as in eager."""

    def make(bench):
        def step(i):
            if not ODD_STEP <= i < ODD_STEP + 3:
                return bench.train()
            with CountingMode() as counting:
                loss = bench.train()
            bench.log.append(counting.count)
            return loss

        return step

    check(make, mode)


class Tagged(torch.Tensor):
    """A plain tensor subclass."""


def test_tensor_subclass(mode):
    """A subclass keeps its type through operations."""

    def make(bench):
        def step(i):
            x = bench.batch()[0].as_subclass(Tagged)
            y = (x * 2 + bench.weight().detach()[0]).relu()
            bench.log.append((type(y).__name__, y.as_subclass(torch.Tensor).sum().item()))
            return bench.train()

        return step

    check(make, mode)


def test_complex_and_integer_tensors(mode):
    """Other dtypes, complex views and bit tricks."""

    def make(bench):
        def step(i):
            x = bench.batch()[0]
            spectrum = torch.fft.rfft(x)
            real = torch.view_as_real(spectrum * spectrum.conj())
            counts = torch.bincount((x.abs() * 3).long().flatten().clamp(max=5), minlength=6)
            bench.log.append((real.sum().item(), counts.tolist(), x.view(torch.int32)[0, 0].item()))
            return bench.train()

        return step

    check(make, mode)


def test_profiler_around_a_step(mode):
    """torch.profiler sees something and changes nothing."""

    def make(bench):
        def step(i):
            if i not in (1, ODD_STEP):
                return bench.train()
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
                loss = bench.train()
            bench.log.append(len(profiler.events()) > 0)
            return loss

        return step

    check(make, mode)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile on the CPU needs a C++ compiler")
def test_compiled_module_inside(mode):
    """A torch.compile'd module in the step; the same compiled module serves both twins."""
    compiled = torch.compile(lambda x: torch.tanh(x * 2 + 1).sum(1), dynamic=False)

    def make(bench):
        def step(i):
            features, _ = bench.batch()
            bench.log.append(compiled(features + bench.weight().detach()[:5]).sum().item())
            return bench.train()

        return step

    check(make, mode)


def test_tensors_made_by_exec_and_eval(mode):
    """Dynamic code, lambdas and closures make no difference."""

    def make(bench):
        scope = {"torch": torch}

        def step(i):
            exec(f"def f(x): return torch.tanh(x) * {i % 2 + 1}", scope)
            bench.log.append(eval("f(x).sum().item()", scope | {"x": bench.weight().detach()}))
            return bench.train()

        return step

    check(make, mode)
