"""Named rows of the comparison, and the options of the core that each one stands for.

A row is one model: preset, active share of the FFN, and what is changed against the preset. Rows of one preset share
schedule and texts, so that two of them differ in the named change alone. Rows with a teacher are compared with the
`static` row that has the same teacher.
"""

import fnmatch
import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

from outrider.refactor.budgets import ROWS

ACTIVE = (0.5, 0.75)

# Options of the core that change no result.
WITHOUT_EFFECT = ("checkpoint_steps", "seconds_max", "steps_max", "eval_taus", "trace_tokens")

# How the tokens of a row are spread over stages; `last_router` is the share of router steps behind the last expert
# stage. Everything else are options of the core.
SCHEDULES: dict[str, dict[str, Any]] = {
    "outrider": {"rounds": 1, "last_router": 0.3, "expert.rate": 1e-3, "router.rate": 5e-4},
    "readme": {"rounds": 4, "last_router": 0.0, "expert.rate": 1e-3, "router.rate": 5e-4},
}


# Share of the router's tokens that a router which learns with the experts has to itself, in front.
JOINT_START = 1 / 6


@dataclass(frozen=True)
class Row:
    """`distilled`: the teacher is `dense-cont` of the same preset. `extra`: what `ours` spends on its router and this
    row does not is spent on tuning.
    """

    preset: str
    name: str
    active: float
    options: dict[str, Any] = field(default_factory=dict)
    distilled: bool = False
    extra: bool = False

    @property
    def key(self) -> str:
        """Names the row on the command line; rows of the preset `outrider` without a teacher end in -ce."""
        plain = self.preset == "outrider" and not self.distilled and self.active < 1
        return f"{self.preset}-{self.active:g}-{self.name}" + ("-ce" if plain else "")

    @property
    def trained_router(self) -> bool:
        """Whether there are router stages."""
        return self.options.get("routing.kind", "router") in ("router", "layerwise")

    @property
    def joint(self) -> bool:
        """Whether the router learns in expert steps too."""
        return self.options.get("router.joint", "off") != "off"

    @property
    def routed(self) -> bool:
        """Whether a router outside the backbone chooses one expert for all layers."""
        return self.options.get("routing.kind", "router") == "router"


# Changes of `ours` that only these tables measure.
_FURTHER: dict[str, dict[str, Any]] = {
    "static-three": ROWS["static"] | {"experts.statistic": "best_of_three"},
    "ours-activation": {"coverage.mass": "activation"},
    "ours-global": {"experts.ratio": "global"},
    "ours-joint": {"router.joint": "coverage"},
    "ours-joint+": {"router.joint": "coverage"},
    "ours-measured": {"experts.ratio": "measured"},
    "ours-16": {"experts.count": 16},
    "ours-16-global": {"experts.count": 16, "experts.ratio": "global"},
    "ours-window-16": {"coverage.granularity": "window:16"},
    "ours-window-256": {"coverage.granularity": "window:256"},
    "ours-document": {"coverage.granularity": "document"},
    "ours-paper": {"router.loss": "paper"},
    "ours-abs": {"router.loss": "code_abs"},
}
_NAMES = {
    "outrider": """static static-three ours static-ce ours-ce static+ random-router contextual layerwise carved
        random-mask ours-activation ours-joint ours-joint+ ours-global ours-measured ours-16 ours-16-global
        ours-window-16 ours-window-256 ours-document""",
    "readme": "static ours ours-paper ours-abs static+ random-router domain-oracle contextual layerwise",
}


def _rows_of(preset: str, active: float) -> list[Row]:
    """Rows of the preset `outrider` have a teacher unless their name ends in -ce."""
    rows = []
    for full in _NAMES[preset].split():
        name = full.removesuffix("-ce")
        distilled = preset == "outrider" and name == full
        rows.append(Row(preset, name, active, (ROWS | _FURTHER)[name], distilled, extra=name.endswith("+")))
    return rows


def all_rows() -> list[Row]:
    """In the order in which they run: a teacher before its pupils, what is compared with before what is compared."""
    rows = []
    for preset in SCHEDULES:
        rows.append(Row(preset, "dense-cont", 1.0, ROWS["dense-cont"]))
        for active in ACTIVE:
            rows += _rows_of(preset, active)
    return rows


def teacher_of(row: Row) -> Row | None:
    if not row.distilled:
        return None
    return next(one for one in all_rows() if one.preset == row.preset and one.name == "dense-cont")


def chosen_rows(patterns: list[str]) -> list[Row]:
    """Rows whose key fits a pattern, and before each the teacher that it needs.

    Raises:
        SystemExit: a pattern that no row fits.
    """
    rows = all_rows()
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(row.key, pattern) for row in rows):
            raise SystemExit(f"no row fits {pattern}; rows are {', '.join(row.key for row in rows)}")
    chosen = [row for row in rows if any(fnmatch.fnmatchcase(row.key, pattern) for pattern in patterns)]
    needed = {teacher.key for teacher in map(teacher_of, chosen) if teacher}
    return [row for row in rows if row in chosen or row.key in needed]


@dataclass(frozen=True)
class Plan:
    """What all rows of a call share. `changes`: (key pattern or *, option of the core, value)."""

    model: str
    data: str
    tokens: int
    router_tokens: int
    batch: int = 28
    sequence: int = 1_024
    micro_batch: int = 28
    eval_tokens: int = 65_536
    seed: int = 0
    device: str = "cuda"
    dtype: str = "bfloat16"
    changes: tuple[tuple[str, str, Any], ...] = ()

    @property
    def step_tokens(self) -> int:
        return self.batch * self.sequence

    def stages(self, row: Row) -> dict[str, int]:
        """Rounds, and optimizer steps of each stage of a round; at least one expert step a round."""
        schedule = SCHEDULES[row.preset]
        rounds = schedule["rounds"]
        router = round(self.router_tokens / self.step_tokens)
        last = round(router * schedule["last_router"])
        first = router - last
        if row.joint:
            first, last = round(router * JOINT_START), 0
        if not row.trained_router:
            first, last = 0, 0
        spared = (router - first - last) * self.step_tokens if row.extra else 0
        return {
            "rounds": rounds,
            "expert.steps": max(1, round((self.tokens + spared) / (rounds * self.step_tokens))),
            "router.steps": round(first / rounds),
            "router.last_steps": last,
        }

    def options(self, row: Row, teacher: str | None) -> dict[str, Any]:
        """Options of the core without `out`; `teacher` is the folder of the tuned dense model."""
        schedule = {name: value for name, value in SCHEDULES[row.preset].items() if "." in name}
        options = {
            "preset": row.preset,
            "model": self.model,
            "data": self.data,
            "device": self.device,
            "dtype": self.dtype,
            "seed": self.seed,
            "batch": self.batch,
            "sequence": self.sequence,
            "micro_batch": min(self.micro_batch, self.batch),
            "experts.keep": row.active,
            "eval_tokens": self.eval_tokens,
            **schedule,
            **self.stages(row),
            **row.options,
        }
        if row.distilled:
            options |= {"distill": 1.0, "teacher": teacher or "parent"}
        for pattern, name, value in self.changes:
            if fnmatch.fnmatchcase(row.key, pattern):
                options[name] = value
        return options

    def counted_tokens(self, row: Row) -> dict[str, int]:
        """Tokens of tuning, of the router, and those that the teacher was tuned on."""
        options, teacher = self.options(row, None), teacher_of(row)
        step = options["batch"] * options["sequence"]
        router = options["rounds"] * options["router.steps"] + options["router.last_steps"]
        return {
            "tokens": options["rounds"] * options["expert.steps"] * step,
            "router_tokens": router * step,
            "teacher_tokens": self.counted_tokens(teacher)["tokens"] if teacher else 0,
        }

    def identity(self, row: Row) -> str:
        """The row's key and a digest of what decides its result, so that other settings never meet in one folder."""
        teacher = teacher_of(row)
        options = self.options(row, self.identity(teacher) if teacher else None)
        decides = {name: value for name, value in options.items() if name not in WITHOUT_EFFECT}
        text = json.dumps(decides, sort_keys=True)
        return f"{row.key}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
