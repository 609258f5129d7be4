"""`outrider refactor` as a user calls it, on a model and text that every machine has."""

import json
import shutil

import pytest
from outrider import _core
from outrider.cli import app
from outrider.refactor import budgets, run, smoke
from outrider.refactor.errors import InputError
from typer.testing import CliRunner

SMALL = (
    ("rounds", 1),
    ("router.steps", 2),
    ("router.last_steps", 1),
    ("expert.steps", 3),
    ("eval_tokens", 512),
    ("experts.count", 4),
    ("coverage.rounds", 3),
)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A model folder and a text folder."""
    return smoke.make(tmp_path_factory.mktemp("smoke") / "made", max_bytes=1 << 18)


def request_of(inputs, out, **fields):
    model, text = inputs
    return run.Request(**{"model": model, "data": text, "out": out, "changes": SMALL, **fields})


@pytest.fixture(scope="module")
def finished(inputs, tmp_path_factory):
    """The output folder and its card."""
    out = tmp_path_factory.mktemp("run") / "moe"
    return out, run.refactor(request_of(inputs, out))


def test_all_rows_are_on_the_card(finished):
    out, card = finished
    assert [row["name"] for row in card["rows"]] == ["parent", "dense-cont", "static", "ours"]
    assert json.loads((out / "quality_card.json").read_text()) == card
    tuned = {row["name"]: row["tokens"]["tuning"] for row in card["rows"][1:]}
    assert set(tuned.values()) == {3 * 4 * 128}, "every row sees the same tokens"
    assert card["rows"][3]["against_static"].keys() == {"code", "docstrings", "licences", "geometric mean"}
    assert not out.with_name("moe.work").exists()


def test_every_file_has_its_checksum(finished, tmp_path):
    out, _ = finished
    header = json.loads((out / "outrider.json").read_text())
    beside = {"outrider.json", "quality_card.json", "quality_card.md", "quality_card.png", "routes", "rows.json"}
    assert set(header["files"]) == {path.name for path in out.iterdir()} - beside
    damaged = shutil.copytree(out, tmp_path / "damaged")
    text = bytearray((damaged / "outrider_router.safetensors").read_bytes())
    text[-1] ^= 1
    (damaged / "outrider_router.safetensors").write_bytes(text)
    from outrider.refactor.artifact import load_artifact

    with pytest.raises(InputError, match=r"outrider_router\.safetensors"):
        load_artifact(damaged)


def test_an_interrupted_run_goes_on_to_the_same_bits(inputs, finished, tmp_path):
    out = tmp_path / "moe"
    steps = []

    def interrupt(row, step):
        steps.append(row)
        if row == "ours" and step["position"] == 4:
            raise KeyboardInterrupt

    changes = (*SMALL, ("checkpoint_steps", 1))
    with pytest.raises(KeyboardInterrupt):
        run.refactor(request_of(inputs, out, changes=changes), interrupt)
    assert not out.exists()
    before = len(steps)
    run.refactor(request_of(inputs, out, changes=changes), lambda row, step: steps.append(row))
    assert len(steps) - before < 6, "finished rows and steps are not run again"
    for name in ("model.safetensors", "outrider_masks.safetensors", "outrider_router.safetensors"):
        assert (out / name).read_bytes() == (finished[0] / name).read_bytes()


def test_dry_run_writes_nothing(inputs, tmp_path):
    model, text = inputs
    arguments = ["refactor", str(model), "--data", str(text), "--out", str(tmp_path / "out"), "--dry-run"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "expert_tokens_per_row: 20,480" in result.output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "--data FOLDER"),
        (["--data", "nowhere"], "nowhere"),
        (["--data", "{text}", "--rows", "static"], "ours"),
        (["--data", "{text}", "--budget", "huge"], "cpu-smoke"),
        (["--data", "{text}", "--option", "expert.stepz=3"], "expert.stepz"),
        (["--data", "{text}", "--option", "novalue"], "NAME=VALUE"),
    ],
)
def test_bad_input_is_one_line(inputs, tmp_path, arguments, says):
    model, text = inputs
    given = [word.format(text=text) for word in arguments]
    result = CliRunner().invoke(app, ["refactor", str(model), "--out", str(tmp_path / "out"), *given])
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("outrider: error E_")
    assert says in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_gguf_file_is_sent_to_the_import(tmp_path):
    arguments = ["refactor", "model.gguf", "--data", str(tmp_path), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert "outrider import model.gguf" in result.stderr


def test_budgets_are_options_of_the_core(inputs, tmp_path):
    for budget in run.BUDGETS:
        for preset in ("outrider", "readme"):
            options = request_of(inputs, tmp_path, budget=budget, preset=preset, changes=()).options()
            assert json.loads(_core.refactor_options(json.dumps(options))) == options


def test_every_row_that_can_be_asked_for_runs(inputs, tmp_path):
    out = tmp_path / "moe"
    card = run.refactor(request_of(inputs, out, rows=tuple(budgets.ROWS)))
    assert [row["name"] for row in card["rows"]] == ["parent", *budgets.ROWS]
    tuned = {row["name"]: row["tokens"] for row in card["rows"][1:]}
    assert tuned.pop("static+") == {"tuning": (3 + 3) * 4 * 128, "router": 0, "teacher": 0}
    assert {tokens["tuning"] for tokens in tuned.values()} == {3 * 4 * 128}
    routed = {name for name, tokens in tuned.items() if tokens["router"] == 3 * 4 * 128}
    assert routed == {"random-mask", "layerwise", "carved", "ours"}
    traces = {path.stem for path in (out / "routes").iterdir()}
    assert traces == routed | {"random-router", "domain-oracle"}


def test_static_plus_spends_what_the_router_saw():
    options = {"rounds": 4, "router.steps": 38, "router.last_steps": 38, "expert.steps": 152}
    plus = budgets.row_options("static+", options)
    assert plus["expert.steps"] == 152 + 48, "190 router steps over four rounds, rounded up"
    assert budgets.row_options("static", options)["expert.steps"] == 152
    assert budgets.row_options("ours", options) == options
