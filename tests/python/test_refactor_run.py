"""`outrider refactor` as a user calls it, on a model and text that every machine has."""

import json
import shutil
from unittest import mock

import pytest
import transformers
from gguf_files import write_gguf
from model_fixtures import make_model
from outrider import _core
from outrider.cli import app
from outrider.refactor import budgets, estimate, run, smoke
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
    beside = {"outrider.json", "outrider.sha256"}
    beside |= {"quality_card.json", "quality_card.md", "quality_card.png", "routes", "rows.json"}
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


def test_a_gguf_file_is_imported_once_into_the_working_folder(inputs, tmp_path, monkeypatch):
    folder = tmp_path / "model"
    config = transformers.LlamaConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=288,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        head_dim=16,
    )
    write_gguf(tmp_path / "tiny.gguf", make_model(config, folder))
    out = tmp_path / "moe"
    arguments = ["refactor", str(tmp_path / "tiny.gguf"), "--data", str(inputs[1]), "--out", str(out)]
    arguments += [word for name, value in SMALL for word in ("--option", f"{name}={value}")]
    done = CliRunner().invoke(app, [*arguments, "--dry-run"])
    assert done.exit_code == 0 and "memory_bytes: " in done.stdout, done.output
    assert not out.exists() and not out.with_name("moe.work").exists()

    calls = []

    def interrupt(request, *_, **__):
        calls.append(request.model)
        raise ValueError("error E_TEST: stopped")

    with monkeypatch.context() as patched:
        patched.setattr(run, "refactor", interrupt)
        assert CliRunner().invoke(app, arguments).exit_code == 2
    imported = out.with_name("moe.work") / "tiny"
    assert calls == [imported]
    before = (imported / "model.safetensors").stat().st_mtime_ns
    done = CliRunner().invoke(app, [*arguments, "--max-tokens", "60000"])
    assert done.exit_code == 0, done.output
    assert before and not imported.exists(), "the working folder is gone"
    card = json.loads((out / "quality_card.json").read_text())
    assert card["parent"]["name"] == "tiny" and card["experts"]["count"] == 4
    assert (out / "tokenizer.json").is_file()


def test_a_file_that_is_no_gguf_is_named(inputs, tmp_path):
    arguments = ["refactor", str(tmp_path / "none.gguf"), "--data", str(inputs[1]), "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2 and "none.gguf" in done.stderr and done.stderr.count("\n") == 1
    (tmp_path / "none.gguf").write_bytes(b"GGUF but not really")
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2 and "E_GGUF" in done.stderr
    assert not (tmp_path / "out").exists()


def test_the_estimate_grows_with_what_it_counts(inputs):
    from outrider.refactor.estimate import estimate

    model, _ = inputs
    options = request_of(inputs, "out").options()
    base = estimate(model, options, ("dense-cont", "static", "ours"))
    assert base["steps_per_row"] == 1 * (2 + 3) + 1
    assert base["time_seconds"] >= 1 and "measured now" in base["time_basis"]
    assert estimate(model, options, ("ours",))["disk_bytes"] < base["disk_bytes"]
    for change in ({"micro_batch": 1, "batch": 4}, {"tune": "adapter:4"}, {"chunk": 1}):
        assert estimate(model, options | change, ("ours",))["memory_bytes"] < base["memory_bytes"], change
    distilled = estimate(model, options | {"distill": 1.0}, ("ours",))
    assert distilled["memory_bytes"] > base["memory_bytes"]
    far = estimate(model, options | {"device": "cuda"}, ("ours",))["time_basis"]
    assert "H200" in far or "measured now" in far


def test_the_same_card_text_comes_from_its_json(finished, tmp_path):
    out, _ = finished
    copy = shutil.copytree(out, tmp_path / "copy")
    before = {name: (copy / name).read_bytes() for name in ("quality_card.md", "quality_card.png")}
    for name in before:
        (copy / name).unlink()
    assert CliRunner().invoke(app, ["card", str(copy)]).exit_code == 0
    assert before == {name: (copy / name).read_bytes() for name in before}
    card = json.loads((copy / "quality_card.json").read_text())
    assert [point["label"] for point in card["curve"]] == ["tau 0", "tau 0.5", "tau 1", "tau 2", "tau 4"]
    assert card["routing"]["all"]["run_histogram"] and card["masks"]["live_signatures"]
    assert all(row["domains"]["code"]["bits_per_byte"] > 0 for row in card["rows"])


def test_budgets_are_options_of_the_core(inputs, tmp_path):
    for budget in run.BUDGETS:
        for preset in ("outrider", "readme"):
            options = request_of(inputs, tmp_path, budget=budget, preset=preset, changes=()).options()
            assert json.loads(_core.refactor_options(json.dumps(options))) == options


def test_the_router_of_a_gpu_budget_learns_with_the_experts(inputs, tmp_path):
    ours = request_of(inputs, tmp_path, budget="gpu-1", changes=()).options()
    readme = request_of(inputs, tmp_path, budget="gpu-1", preset="readme", changes=()).options()
    assert (ours["router.joint"], readme["router.joint"]) == ("coverage", "off")
    steps = [one["router.steps"] + one["expert.steps"] + one["router.last_steps"] for one in (ours, readme)]
    assert steps[0] == steps[1]
    for name, value in (("router.joint", "off"), ("router.loss", "paper"), ("routing.kind", "layerwise")):
        alone = request_of(inputs, tmp_path, budget="gpu-1", changes=((name, value),)).options()
        assert (alone["router.joint"], alone["router.steps"]) == ("off", readme["router.steps"]), name
    static = budgets.row_options("static", ours)
    assert json.loads(_core.refactor_options(json.dumps(static)))["router.joint"] == "off"


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


@pytest.mark.parametrize("changes", [(), (("experts.ratio", "measured"), ("routing.tau", 1.0), ("experts.count", 4))])
def test_every_row_goes_with_what_ours_may_be(inputs, tmp_path, changes):
    options = request_of(inputs, tmp_path, changes=changes).options()
    for row in budgets.ROWS:
        changed = budgets.row_options(row, options)
        assert json.loads(_core.refactor_options(json.dumps(changed))) == changed, row


def test_flags_are_options_of_the_core(tmp_path):
    model, text = smoke.make(tmp_path / "smoke", max_bytes=1 << 16)
    arguments = ["refactor", str(model), "--data", str(text), "--out", str(tmp_path / "out"), "--dry-run"]
    plain = CliRunner().invoke(app, arguments)
    tuned = CliRunner().invoke(app, [*arguments, "--tune", "adapter:4", "--deterministic"])
    assert plain.exit_code == tuned.exit_code == 0, tuned.output
    memory = [int(run.output.split("memory_bytes: ")[1].split()[0].replace(",", "")) for run in (plain, tuned)]
    assert memory[1] < memory[0], "a frozen parent has no gradients and no moments"
    wrong = CliRunner().invoke(app, [*arguments, "--tune", "lora:4"])
    assert wrong.exit_code == 2
    assert "expected full or adapter:R" in wrong.output


def test_gradient_mass_costs_the_router_a_backward_pass(tmp_path):
    model, text = smoke.make(tmp_path / "smoke", max_bytes=1 << 16)
    seconds = []
    for mass in ("activation", "gradient"):
        changes = (("coverage.mass", mass), ("router.steps", 10_000))
        request = run.Request(model=model, data=text, out=tmp_path / "out", changes=changes)
        with mock.patch.object(estimate, "_rate", return_value=(1e9, "given")):
            seconds.append(run.estimate(request)["time_seconds"])
    assert 2 < seconds[1] / seconds[0] < 3, "6 operations a parameter and token instead of 2"
