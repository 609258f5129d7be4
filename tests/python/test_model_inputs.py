"""Model folders as they come: read-only, in narrow dtypes, in shards, for the core and for a whole refactoring."""

import json
import os
import shutil

import pytest
import torch
import transformers
from model_fixtures import relative_error, some_ids
from outrider import _core
from outrider.refactor import run, smoke

SMALL = (
    ("rounds", 1),
    ("router.steps", 1),
    ("router.last_steps", 0),
    ("expert.steps", 1),
    ("eval_tokens", 256),
    ("eval_taus", ""),
    ("experts.count", 2),
    ("coverage.rounds", 1),
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Model and text; the model in float32, one file."""
    return smoke.make(tmp_path_factory.mktemp("inputs") / "made", max_bytes=1 << 16)


def stored(made, folder, dtype, shard="5GB"):
    """A copy of the model in `dtype`, tokenizer included."""
    model, _ = made
    network = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=dtype)
    shutil.copytree(model, folder, ignore=shutil.ignore_patterns("*.safetensors*", "config.json"))
    network.save_pretrained(folder, max_shard_size=shard)
    return folder


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("shard", ["5GB", "100KB"])
def test_every_stored_form_is_read(made, tmp_path, dtype, shard):
    folder = stored(made, tmp_path / "model", dtype, shard)
    files = list(folder.glob("*.safetensors"))
    assert len(files) == 1 if shard == "5GB" else len(files) > 3
    reference = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = some_ids(2, 50)
    with torch.no_grad():
        expected = reference(ids).logits
    assert relative_error(_core.Model.load(str(folder)).logits(ids), expected) < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_read_only_sharded_folder_is_refactored(made, tmp_path, dtype):
    folder = stored(made, tmp_path / "model", dtype, "100KB")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for path in folder.iterdir():
        path.chmod(0o444)
    folder.chmod(0o555)
    out = tmp_path / "out"
    try:
        card = run.refactor(run.Request(model=folder, data=made[1], out=out, changes=SMALL, rows=("static", "ours")))
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    finally:
        folder.chmod(0o755)
    assert [row["name"] for row in card["rows"]] == ["parent", "static", "ours"]
    assert os.access(out / "config.json", os.W_OK)
    assert json.loads((out / "config.json").read_text())["intermediate_size"] == 172
    assert (out / "tokenizer.json").read_bytes() == before["tokenizer.json"]
