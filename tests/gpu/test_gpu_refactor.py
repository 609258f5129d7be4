"""A refactoring on a GPU: near the CPU's results in float32, and the same bits twice when deterministic."""

import json
from pathlib import Path

import pytest
from outrider import _core
from test_moe_refactor import make_data, make_model

OPTIONS = {
    "seed": 3, "experts.count": 4, "calibration.samples": 8, "calibration.tokens": 64, "router.width": 64,
    "rounds": 2, "router.steps": 4, "expert.steps": 4, "batch": 12, "micro_batch": 6, "sequence": 64, "chunk": 256,
    "expert.rate": 1e-3, "router.rate": 2e-3, "eval_tokens": 512, "checkpoint_steps": 4,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("gpu_refactor")
    make_data(root / "data")
    make_model(root / "parent")
    return root


def run(folder: Path, name: str, **changes: object) -> dict:
    files = {"model": str(folder / "parent"), "data": str(folder / "data"), "out": str(folder / name)}
    return json.loads(_core.refactor(json.dumps(OPTIONS | files | changes)))


def nats(result: dict) -> float:
    losses = result["eval"]["test"]["refactored"].values()
    return sum(d["nats"] for d in losses) / sum(d["tokens"] for d in losses)


@pytest.mark.parametrize(
    "row",
    [
        {},
        {"experts.kind": "dense", "routing.kind": "none"},
        {"experts.kind": "static", "experts.statistic": "best", "routing.kind": "none"},
        {"experts.kind": "published", "router.loss": "code"},
        {"experts.kind": "published", "router.loss": "paper"},
        {"routing.kind": "random"},
        {"experts.kind": "contextual", "routing.kind": "none"},
        {"teacher": "parent", "distill": 1.0},
        {"tune": "adapter:4"},
    ],
    ids=lambda row: "-".join(str(value) for value in row.values()) or "outrider",
)
def test_float32_rows_come_near_the_cpu(folder: Path, row: dict) -> None:
    name = "-".join(str(value).replace(":", "") for value in row.values()) or "outrider"
    on_cpu = nats(run(folder, f"{name}-cpu", **row))
    on_gpu = nats(run(folder, f"{name}-cuda", device="cuda", **row))
    assert on_gpu == pytest.approx(on_cpu, rel=2e-2)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_deterministic_runs_have_equal_bits(folder: Path, dtype: str) -> None:
    changes = {"device": "cuda", "dtype": dtype, "deterministic": True}
    whole = run(folder, f"whole-{dtype}", **changes)
    assert run(folder, f"again-{dtype}", **changes)["eval"] == whole["eval"]
    stopped = run(folder, f"parts-{dtype}", **changes, steps_max=7)
    assert not stopped["done"]
    assert run(folder, f"parts-{dtype}", **changes)["eval"] == whole["eval"]
    assert run(folder, f"coexec-{dtype}", **changes, coexec=True)["eval"] == whole["eval"]
    for name in ("model.safetensors", "outrider_masks.safetensors", "outrider_router.safetensors"):
        files = [(folder / f"{made}-{dtype}" / "model" / name).read_bytes() for made in ("whole", "parts", "coexec")]
        assert files[0] == files[1] == files[2], name
