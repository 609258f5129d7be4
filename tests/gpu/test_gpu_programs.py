"""The example programs on the GPU, in both lanes: bit for bit equal to eager, covered, captured."""

import functools
import importlib

import equality
import pytest
from tiny_programs import TINY

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(300)]

STEPS = 100

PROGRAMS = {
    "digits_cnn-sgd": ("digits_cnn", {"optimizer": "sgd"}, ("inner", "outer")),
    "digits_cnn-adamw": ("digits_cnn", {"optimizer": "adamw"}, ("inner", "outer")),
    "digits_cnn-fused-fetch10": ("digits_cnn", {"optimizer": "adamw_fused", "log_every": 10}, ("inner", "outer")),
    "text_gpt-fixed": ("text_gpt", {"lengths": (64, 64), "layer_drop": 0.0, "layers": 2}, ("inner", "outer")),
    "text_gpt": ("text_gpt", {"lengths": (32, 128)}, ("inner",)),
    "gan": ("gan", {}, ("inner", "outer")),
    "decode": ("decode", {}, ("inner",)),
}

# "early": the outer lane, with parts launched at every possible place before the program asks for anything.
WAYS = {lane: {"lane": lane} for lane in equality.LANES} | {"early": {"lane": "outer", "early_launch": 2}}
CASES = [
    (name, lane)
    for name, (_, _, lanes) in PROGRAMS.items()
    for lane in (*lanes, *(["early"] if "outer" in lanes else []))
]


def builder(name):
    """Returns a function that builds the named program on the GPU."""
    module, config, _ = PROGRAMS[name]
    return functools.partial(importlib.import_module(f"coexec.{module}").build, 0, device="cuda", **config)


@pytest.mark.parametrize("name", PROGRAMS)
def test_eager_equals_eager(name):
    """The premise: these kernels are deterministic."""
    equality.assert_equal(equality.run_eager(builder(name), 30), equality.run_eager(builder(name), 30))


@pytest.mark.parametrize("name,lane", CASES)
def test_equal_and_covered(name, lane):
    """Every bit, the CUDA generator's state included, and 90 % of the device ops."""
    twin = equality.run_coexec(builder(name), STEPS, **WAYS[lane])
    equality.assert_equal(equality.run_eager(builder(name), STEPS), twin)
    assert equality.covered_share(twin.rows) >= 0.9, equality.why_not(twin.rows)


@pytest.mark.parametrize("name", ["digits_cnn-sgd", "digits_cnn-fused-fetch10", "text_gpt-fixed"])
def test_stable_steps_are_captured(name):
    """A step that keeps its path runs as CUDA graphs after a few steps."""
    twin = equality.run_coexec(builder(name), 40, lane="outer")
    tiers = [row["tier"] for row in twin.rows[20:]]
    assert tiers.count("T2") >= 0.8 * len(tiers), tiers


@pytest.mark.parametrize("flush", ["every", "random"])
@pytest.mark.parametrize("name", ["digits_cnn-adamw", "text_gpt-fixed"])
def test_flush_modes(name, flush):
    """Every value materialised at once, or at random places."""
    twin = equality.run_coexec(builder(name), 30, flush=flush)
    equality.assert_equal(equality.run_eager(builder(name), 30), twin)


@pytest.mark.parametrize("fetch", ["none", "middle", "end"])
@pytest.mark.parametrize("lane", WAYS)
@pytest.mark.parametrize("name", TINY)
def test_divergence_at_events(name, lane, fetch):
    """A divergence forced at every event of a step that runs as CUDA graphs."""
    build = functools.partial(TINY[name], fetch, "cuda")
    eager = equality.run_eager(build, 20)
    wrong, event = {}, 0
    while event < 2000:
        twin = equality.run_coexec(build, 20, **WAYS[lane], force_divergence=(16, event))
        forced = [item["event"] for item in twin.rows[16]["divergences"] if item["code"] == "DIV_FORCED"]
        if event not in forced:
            break
        found = equality.differences(eager, twin)
        if found:
            wrong[event] = found[:3]
        event += 1
    assert event >= 12, f"only {event} events could be forced"
    assert not wrong, wrong
