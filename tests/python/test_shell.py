"""Steps and their controls, against a double of the native core."""

import asyncio
import functools
import os
import subprocess
import sys
import threading

import outrider
import pytest
from shell_fixtures import core_double  # noqa: F401  the fixture `core`

pytestmark = pytest.mark.timeout(60)


def _step_calls(core):
    return [call for call in core.calls if call[0].startswith("step_")]


def test_a_call_is_one_step(core):
    seen = []

    def train(x, *, scale=1):
        """Docs."""
        seen.append(core.calls[-1])
        return x * scale

    wrapped = outrider.coexec(train)
    assert wrapped(3, scale=2) == 6
    assert seen == [("step_begin", "train")]
    assert _step_calls(core) == [("step_begin", "train"), ("step_end",)]
    assert (wrapped.__name__, wrapped.__doc__, wrapped.__wrapped__) == ("train", "Docs.", train)


@pytest.mark.parametrize("error", [ValueError("mine"), KeyboardInterrupt(), SystemExit(3)], ids=repr)
def test_an_exception_aborts_the_step_and_passes_unchanged(core, error):
    @outrider.coexec
    def train():
        raise error

    with pytest.raises(type(error)) as caught:
        train()
    assert caught.value is error
    assert error.__cause__ is None and error.__context__ is None
    assert _step_calls(core) == [("step_begin", "train"), ("step_abort",)]
    assert not outrider.api.inside_step()


def test_an_error_that_the_core_finds_at_the_end_reaches_the_caller(core, monkeypatch):
    def fails():
        raise RuntimeError("from the graph runner")

    monkeypatch.setattr(core, "step_end", fails)
    with pytest.raises(RuntimeError, match="from the graph runner"):
        outrider.coexec(lambda: None)()
    assert not outrider.api.inside_step()


def test_an_inner_step_is_part_of_the_outer_one(core):
    inner = outrider.coexec(lambda: "inner")

    @outrider.coexec
    def outer():
        with outrider.step("block"):
            return inner()

    assert outer() == "inner"
    assert _step_calls(core) == [("step_begin", "outer"), ("step_end",)]


def test_an_inner_exception_that_the_program_catches_does_not_abort_the_outer_step(core):
    @outrider.coexec
    def inner():
        raise ValueError

    @outrider.coexec
    def outer():
        with pytest.raises(ValueError):
            inner()

    outer()
    assert _step_calls(core) == [("step_begin", "outer"), ("step_end",)]


def test_a_block_is_a_step_and_one_block_object_can_be_used_again(core):
    block = outrider.step(name="evaluate")
    for _ in range(2):
        with block:
            pass
    assert _step_calls(core) == 2 * [("step_begin", "evaluate"), ("step_end",)]


def test_a_second_thread_runs_plainly(core):
    results = []
    entered, release = threading.Event(), threading.Event()
    other = outrider.coexec(lambda: results.append(outrider.api.inside_step()), name="other")

    @outrider.coexec
    def first():
        entered.set()
        assert release.wait(timeout=30)

    thread = threading.Thread(target=first)
    thread.start()
    assert entered.wait(timeout=30)
    other()
    release.set()
    thread.join(timeout=30)
    assert results == [False]
    assert ("step_begin_refused", "other") in core.calls
    assert core.named("step_begin", "step_end") == ["step_begin", "step_end"]


def test_coexec_twice_is_coexec_once(core):
    once = outrider.coexec(lambda: 1)
    assert outrider.coexec(once) is once

    @functools.wraps(once)
    def decorated_by_somebody_else():
        return once() + 1

    twice = outrider.coexec(decorated_by_somebody_else)
    assert twice is not decorated_by_somebody_else
    assert twice() == 2
    assert core.named("step_begin") == ["step_begin"]


class _Plain:
    def __call__(self, x):
        return x + 1


def _trainer_class():
    """Built inside a test, because decorating already needs the core."""

    class Trainer:
        def __init__(self):
            self.count = 0

        @outrider.coexec
        def train(self):
            self.count += 1
            return self.count

        def plain(self):
            return self.train()

        @outrider.coexec
        @staticmethod
        def static(x):
            return x

        @outrider.coexec
        @classmethod
        def of_class(cls):
            return cls

    return Trainer


def test_methods(core):
    trainer_class = _trainer_class()
    trainer = trainer_class()
    assert (trainer.train(), trainer_class.train(trainer)) == (1, 2)
    again = outrider.coexec(trainer.train)
    assert again == trainer.train and again() == 3
    assert outrider.coexec(trainer.plain)() == 4
    assert (trainer.static(5), trainer_class.static(6)) == (5, 6)
    assert trainer.of_class() is trainer_class
    assert [call[1] for call in core.calls if call[0] == "step_begin"] == [
        *3 * ["Trainer.train"],
        "Trainer.plain",
        *2 * ["Trainer.static"],
        "Trainer.of_class",
    ]


def test_partials_lambdas_and_callable_objects(core):
    import torch

    module = torch.nn.Linear(2, 3)
    step = outrider.coexec(module)
    assert step.__wrapped__ is module
    assert not hasattr(step, "training"), "a copy of the module's attributes would soon be stale"
    assert step(torch.zeros(1, 2)).shape == (1, 3)
    assert outrider.coexec(functools.partial(max, 3))(2) == 3
    assert outrider.coexec(_Plain())(1) == 2
    assert outrider.coexec(lambda: 7, name="seven")() == 7
    assert [call[1] for call in core.calls if call[0] == "step_begin"] == ["Linear", "max", "_Plain", "seven"]


def test_decorator_with_a_name(core):
    @outrider.coexec(name="phase two")
    def train():
        return 1

    assert train() == 1
    assert ("step_begin", "phase two") in core.calls


def _generator():
    yield 1


async def _coroutine():
    return 1


async def _async_generator():
    yield 1


class _AsyncCall:
    async def __call__(self):
        return 1


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (_generator, "a generator function"),
        (functools.partial(_generator), "a generator function"),
        (_coroutine, "a coroutine function"),
        (_async_generator, "an async generator function"),
        (_AsyncCall(), "a coroutine function"),
        (_Plain, "needs a function or a callable object"),
        (3, "needs a function or a callable object"),
    ],
)
def test_what_cannot_be_a_step_is_refused(core, function, message):
    with pytest.raises(TypeError, match=message):
        outrider.coexec(function)
    assert core.calls == []


def test_a_step_works_inside_a_coroutine(core):
    async def main():
        return outrider.coexec(lambda: 5)()

    assert asyncio.run(main()) == 5
    assert core.named("step_begin", "step_end") == ["step_begin", "step_end"]


def test_a_notebook_cell_needs_no_source_file(core):
    cell = (
        "import outrider\n"
        "@outrider.coexec\n"
        "def train(x):\n"
        "    return x + 1\n"
        "with outrider.step('cell'):\n"
        "    y = 1\n"
        "result = train(y)\n"
    )
    namespace = {"__name__": "__main__"}
    exec(compile(cell, "<ipython-input-1>", "exec"), namespace)  # how IPython runs a cell
    assert namespace["result"] == 2
    assert [call[1] for call in core.calls if call[0] == "step_begin"] == ["cell", "train"]


def test_a_step_that_is_redefined_is_a_new_function(core):
    first = outrider.coexec(lambda: 1)
    second = outrider.coexec(lambda: 2)
    assert first is not second and (first(), second()) == (1, 2)


def test_controls_reach_the_core(core):
    outrider.coexec(lambda: 1, name="a")()
    assert [row["name"] for row in outrider.report()] == ["a"]
    outrider.clear()
    assert outrider.report() == []
    outrider.flush()
    outrider.reset()
    assert core.named("flush", "reset") == ["flush", "reset"]


def test_options_change_and_restore(core):
    previous = outrider.options(lane="inner", flush="every", force_divergence=(10, 3), graft=False)
    assert previous == {"lane": "auto", "flush": "never", "force_divergence": None, "graft": 1}
    assert core.values["lane"] == 1 and core.values["flush"] == 1 and core.values["graft"] == 0
    assert (core.values["force_step"], core.values["force_event"]) == (10, 3)
    now = outrider.options(**previous)
    assert now == {"lane": "inner", "flush": "every", "force_divergence": (10, 3), "graft": 0}
    assert core.values == type(core)().values


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"lane": "fast"}, ValueError),
        ({"flush": 1}, ValueError),
        ({"graft": "no"}, TypeError),
        ({"force_divergence": 3}, TypeError),
        ({"no_such_option": 1}, ValueError),
    ],
)
def test_a_wrong_option_changes_nothing(core, changes, error):
    before = dict(core.values)
    with pytest.raises(error):
        outrider.options(runner_delay_us=5, **changes)
    assert core.values == before


def test_the_kill_switch_loads_and_changes_nothing(tmp_path):
    program = f"""
import sys, outrider
def train(): return 1
assert outrider.coexec(train) is train
assert outrider.coexec(name="x")(train) is train
with outrider.step("block"):
    assert train() == 1
outrider.flush(), outrider.reset(), outrider.clear(), outrider.uninstall()
assert outrider.report() == [] and outrider.options(lane="inner") == {{}}
assert outrider.explain() == [] and outrider.graph() == ""
assert outrider.save_graph({str(tmp_path / "g.svg")!r}).read_text().startswith("<?xml")
outrider.save_timeline({str(tmp_path / "t.json")!r})
assert "torch" not in sys.modules and "outrider._core" not in sys.modules
"""
    environment = {**os.environ, "OUTRIDER": "0", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "OUTRIDER=0" in done.stdout


@pytest.mark.parametrize(("forked", "expected"), [(False, "['shutdown']"), (True, "[]")])
def test_the_graph_runner_stops_at_exit_but_not_in_a_forked_child(forked, expected):
    program = f"""
import atexit, fake_core
core = fake_core.install()
atexit.register(lambda: print(core.named("shutdown")))   # registered first, so it runs last
import outrider
from outrider import _runtime
outrider.coexec(lambda: 1)()
if {forked}:
    _runtime.mark_forked_child()
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (0, expected), done.stderr
