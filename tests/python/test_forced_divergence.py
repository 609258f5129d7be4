"""A divergence forced at every event of a covered step, and the hostile flush modes."""

import functools
import importlib

import equality
import pytest
from tiny_programs import FETCHES, TINY

pytestmark = pytest.mark.timeout(600)

FORCED_STEP = 10
STEPS = 14
EVENTS_MAX = 2000
LEAST_EVENTS = {"outer": 20, "inner": 60}


def forced_at(rows, event):
    """True when the core says that it diverged at `event` because it was told to."""
    forced = rows[FORCED_STEP]["divergences"]
    return any(item["code"] == "DIV_FORCED" and item["event"] == event for item in forced)


# Lanes, and the outer one with parts launched at every place where they may be.
WAYS = {lane: {"lane": lane} for lane in equality.LANES} | {"early": {"lane": "outer", "early_launch": 2}}


@pytest.mark.parametrize("fetch", FETCHES)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", TINY)
def test_divergence_at_every_event(name, way, fetch):
    """Whichever event breaks, the step goes on and ends in eager's state."""
    build = functools.partial(TINY[name], fetch)
    lane = WAYS[way]["lane"]
    eager = equality.run_eager(build, STEPS)
    wrong = {}
    event = 0
    while event < EVENTS_MAX:
        twin = equality.run_coexec(build, STEPS, force_divergence=(FORCED_STEP, event), **WAYS[way])
        if not forced_at(twin.rows, event):
            break
        found = equality.differences(eager, twin)
        if found:
            wrong[event] = found[:3]
        event += 1
    assert event >= LEAST_EVENTS[lane], f"only {event} events could be forced: {equality.why_not(twin.rows, 3)}"
    assert equality.differences(eager, twin) == [], "the run past the last event"
    assert not wrong, f"{len(wrong)} of {event} events went wrong: {dict(list(wrong.items())[:5])}"


@pytest.mark.parametrize("lane", equality.LANES)
@pytest.mark.parametrize("name", TINY)
def test_step_is_covered_again_after_a_divergence(name, lane):
    """One divergence costs a few steps, not the lane."""
    twin = equality.run_coexec(TINY[name], 20, lane=lane, force_divergence=(FORCED_STEP, 5))
    assert forced_at(twin.rows, 5)
    assert equality.covered_share(twin.rows, FORCED_STEP + 4) >= 0.95, equality.why_not(twin.rows, FORCED_STEP)


@pytest.mark.parametrize("flush", ["every", "random"])
@pytest.mark.parametrize("lane", equality.LANES)
@pytest.mark.parametrize("name", TINY)
def test_flush_modes_on_tiny_programs(name, lane, flush):
    """Every value materialised at once, or at random places."""
    eager = equality.run_eager(TINY[name], 30)
    twin = equality.run_coexec(TINY[name], 30, lane=lane, flush=flush)
    equality.assert_equal(eager, twin)
    assert sum(sum(row["flushes"].values()) for row in twin.rows) > 0, "the mode flushed nothing"


LONGER = {
    "digits_cnn": {"optimizer": "adamw"},
    "text_gpt": {"lengths": (8, 40)},
    "gan": {},
    "decode": {},
}


@pytest.mark.parametrize("flush", ["every", "random"])
@pytest.mark.parametrize("name", LONGER)
def test_flush_modes_on_programs(name, flush):
    """The same on the example programs."""
    build = functools.partial(importlib.import_module(f"coexec.{name}").build, 0, **LONGER[name])
    equality.assert_equal(equality.run_eager(build, 40), equality.run_coexec(build, 40, flush=flush))


@pytest.mark.parametrize("lane", equality.LANES)
@pytest.mark.parametrize("name", TINY)
def test_slow_graph_runner(name, lane):
    """With the runner far behind, every value that is not waited for would be wrong."""
    for fetch in FETCHES:
        build = functools.partial(TINY[name], fetch)
        twin = equality.run_coexec(build, STEPS, lane=lane, runner_delay_us=2000)
        equality.assert_equal(equality.run_eager(build, STEPS), twin)
