"""How much a refactoring may cost: named sets of options of the core."""

from typing import Any

TAUS = "0,0.5,1,2,4"  # nats of hysteresis, for the curve of quality against locality

BUDGETS: dict[str, dict[str, Any]] = {
    # Minutes on two cores, for models of a few million parameters at most.
    "cpu-smoke": {
        "rounds": 2,
        "router.steps": 10,
        "router.last_steps": 10,
        "expert.steps": 20,
        "batch": 4,
        "micro_batch": 4,
        "sequence": 128,
        "chunk": 512,
        "router.rate": 2e-3,
        "expert.rate": 1e-3,
        "router.width": 64,
        "calibration.samples": 4,
        "calibration.tokens": 512,
        "eval_tokens": 4096,
        "eval_taus": TAUS,
    },
    # One large GPU, 28,672 tokens a step, 10.4 million in all: what docs/results/refactor_h100.md was measured with.
    "gpu-1": {
        "rounds": 1,
        "router.steps": 80,
        "router.last_steps": 34,
        "expert.steps": 250,
        "batch": 28,
        "micro_batch": 28,
        "sequence": 1024,
        "router.rate": 5e-4,
        "expert.rate": 1e-3,
        "eval_tokens": 262_144,
        "eval_taus": TAUS,
        "device": "cuda",
        "dtype": "bfloat16",
    },
}

# The same number of steps where the router learns with the experts, see docs/results/refactor_joint_h200.md.
_JOINT: dict[str, dict[str, Any]] = {
    "gpu-1": {"router.joint": "coverage", "router.steps": 19, "router.last_steps": 0, "expert.steps": 345},
}


# With these values a router can learn with the experts.
_CAN_LEARN = {"router.joint": ("coverage",), "router.loss": ("coverage",), "routing.kind": ("router",)}


def budget_options(budget: str, preset: str, changes: dict[str, Any]) -> dict[str, Any]:
    """Options of a budget, `changes` among them. The router of `readme` is of another form, with stages of its own."""
    if preset == "readme":
        return {name: value for name, value in BUDGETS[budget].items() if name != "router.width"} | changes
    joint = all(changes.get(name, values[0]) in values for name, values in _CAN_LEARN.items())
    return BUDGETS[budget] | (_JOINT.get(budget, {}) if joint else {}) | changes


_NO_ROUTER = {"router.joint": "off"}  # none outside the backbone that could be tuned with the experts
_STATIC = {"experts.kind": "static", "experts.statistic": "best", "routing.kind": "none", **_NO_ROUTER}
_PER_LAYER = {"routing.kind": "layerwise", "routing.tau": 0.0, **_NO_ROUTER}
_EQUAL_LAYERS = {"experts.ratio": "uniform"}  # the kinds of experts that know no other ratio

# What makes each row of a comparison: the same program and texts with these options changed.
ROWS: dict[str, dict[str, Any]] = {
    "dense-cont": {"experts.kind": "dense", "routing.kind": "none", **_NO_ROUTER, **_EQUAL_LAYERS},
    "static": _STATIC,
    "static+": _STATIC,  # and the router's tokens, see row_options
    "random-router": {"routing.kind": "random", **_NO_ROUTER},
    "random-mask": {"experts.kind": "random", **_EQUAL_LAYERS},
    "domain-oracle": {"experts.kind": "published", "routing.kind": "domain", **_NO_ROUTER, **_EQUAL_LAYERS},
    "layerwise": _PER_LAYER,
    "carved": {"experts.kind": "carved", "experts.count": 16, "carved.top": 4, **_PER_LAYER, **_EQUAL_LAYERS},
    "contextual": {"experts.kind": "contextual", "routing.kind": "none", **_NO_ROUTER, **_EQUAL_LAYERS},
    "ours": {},
}
DEFAULT_ROWS = ("dense-cont", "static", "ours")


def row_options(row: str, options: dict[str, Any]) -> dict[str, Any]:
    """`options` of the row `ours`, changed into those of another row.

    `static+` is tuned on as many tokens more as the router of `ours` sees, rounded up to whole steps of each round.
    """
    changed = options | ROWS[row]
    if row == "static+" and options["rounds"] > 0:
        steps = options["rounds"] * options["router.steps"] + options["router.last_steps"]
        changed["expert.steps"] += -(-steps // options["rounds"])
    return changed


def calibration_tokens(options: dict[str, Any]) -> int:
    """Train tokens that calibration and one text of tuning need of each domain."""
    calibration = options["calibration.samples"] * options["calibration.tokens"]
    return max(calibration, options["sequence"] + 1)


def stage_tokens(options: dict[str, Any]) -> dict[str, int]:
    """Tokens that one row with experts and a router is tuned on, by kind of stage."""
    step = options["batch"] * options["sequence"]
    router = options["rounds"] * options["router.steps"] + options["router.last_steps"]
    return {"expert": options["rounds"] * options["expert.steps"] * step, "router": router * step}
