"""The example programs, 200 steps on real data: bit for bit equal to eager, and covered."""

import functools
import importlib

import equality
import pytest

pytestmark = pytest.mark.timeout(300)

STEPS = 200

# name -> (module, configuration, least covered share from step 20 on, lanes it must run in)
PROGRAMS = {
    "digits_cnn-sgd": ("digits_cnn", {"optimizer": "sgd"}, 0.95, ("inner", "outer")),
    "digits_cnn-adam": ("digits_cnn", {"optimizer": "adam"}, 0.95, ("inner", "outer")),
    "digits_cnn-adamw": ("digits_cnn", {"optimizer": "adamw"}, 0.95, ("inner", "outer")),
    "text_gpt": ("text_gpt", {}, 0.90, ("inner",)),
    "text_gpt-fixed": (
        "text_gpt",
        {"lengths": (32, 32), "dropout": 0.0, "layer_drop": 0.0, "layers": 2, "batch": 4},
        0.95,
        ("inner", "outer"),
    ),
    "hf_gpt2-adamw": ("hf_gpt2", {"optimizer": "adamw"}, 0.95, ("inner", "outer")),
    "hf_gpt2-adamw_fused": ("hf_gpt2", {"optimizer": "adamw_fused"}, 0.95, ("inner", "outer")),
    "hf_gpt2-sgd": ("hf_gpt2", {"optimizer": "sgd"}, 0.95, ("inner", "outer")),
    "gan": ("gan", {}, 0.95, ("inner", "outer")),
    "decode": ("decode", {}, 0.90, ("inner",)),
}

CASES = [(name, lane) for name, (_, _, _, lanes) in PROGRAMS.items() for lane in lanes]


def builder(name):
    """Returns a function that builds the named program afresh."""
    module, config, _, _ = PROGRAMS[name]
    return functools.partial(importlib.import_module(f"coexec.{module}").build, 0, **config)


@functools.cache
def eager_twin(name):
    """Runs the program in plain PyTorch, once per test session."""
    return equality.run_eager(builder(name), STEPS)


@pytest.mark.parametrize("name", PROGRAMS)
def test_eager_equals_eager(name):
    """The premise of every other test here: the program by itself is deterministic."""
    equality.assert_equal(eager_twin(name), equality.run_eager(builder(name), STEPS))


@pytest.mark.parametrize("name", PROGRAMS)
def test_program_learns_or_produces(name):
    """A program that does nothing would be equal to itself too."""
    losses = eager_twin(name).losses
    assert len(losses) == STEPS
    if name == "decode":
        assert len(set(losses)) > 20
    elif name != "gan":
        assert sum(losses[-20:]) < 0.8 * sum(losses[:20])


@pytest.mark.parametrize("name,lane", CASES)
def test_equal_and_covered(name, lane):
    """Equality counts only when covered, so both are asserted on the same run."""
    _, _, least_share, _ = PROGRAMS[name]
    twin = equality.run_coexec(builder(name), STEPS, lane=lane)
    equality.assert_equal(eager_twin(name), twin)
    assert len(twin.rows) == STEPS, "one report row per step"
    share = equality.covered_share(twin.rows)
    assert share >= least_share, f"covered {share:.3f}: {equality.why_not(twin.rows)}"
    used = equality.lanes_used(twin.rows)
    assert used.get(lane, 0) >= 0.9 * (STEPS - 20), f"lanes used {used}: {equality.why_not(twin.rows)}"


@pytest.mark.parametrize("name", ["digits_cnn-sgd", "text_gpt"])
def test_automatic_lane_is_equal(name):
    """The default options, as a user gets them."""
    twin = equality.run_coexec(builder(name), STEPS)
    equality.assert_equal(eager_twin(name), twin)
    assert equality.covered_share(twin.rows) >= PROGRAMS[name][2]


def test_decoding_loop_inside_one_step_is_equal():
    """A step whose length Python decides from fetched tokens."""
    build = functools.partial(importlib.import_module("coexec.decode").build, 0, granularity="sequence", tokens_max=12)
    twin = equality.run_coexec(build, 60)
    equality.assert_equal(equality.run_eager(build, 60), twin)
