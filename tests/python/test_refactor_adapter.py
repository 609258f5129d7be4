"""Adapters beside a parent: in transformers, in the core, merged, and in the console program."""

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import outrider.hf
import pytest
import torch
import transformers
from chat_fixtures import VOCAB, make_chat_model
from outrider import _core
from outrider.cli import app
from outrider.refactor import run as refactoring
from outrider.refactor.adapter import load_adapter
from outrider.refactor.artifact import load_artifact, seal
from outrider.refactor.errors import InputError
from outrider.refactor.self_text import SelfOptions, write_self_text
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

FILES = ("model", "data", "out")
DOWN = "model.layers.1.mlp.down_proj.weight"


@dataclass(frozen=True)
class Made:
    parent: Path
    data: Path
    adapter: Path


def options(made: Made, out: Path, **changes) -> str:
    fields = {
        "model": str(made.parent),
        "data": str(made.data),
        "out": str(out),
        "tune": "adapter:4",
        "teacher": "parent",
        "distill": 1.0,
        "experts.count": 3,
        "experts.keep": 0.75,
        "routing.tau": 0.2,
        "calibration.samples": 2,
        "calibration.tokens": 64,
        "router.width": 32,
        "rounds": 1,
        "router.steps": 15,
        "expert.steps": 12,
        "batch": 8,
        "micro_batch": 8,
        "sequence": 64,
        "router.rate": 1e-2,
        "expert.rate": 1e-2,
        "eval_tokens": 128,
    }
    return json.dumps(fields | {key.replace("__", "."): value for key, value in changes.items()})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    root = tmp_path_factory.mktemp("adapter")
    parent = make_chat_model(root / "parent")
    write_self_text(
        parent, root / "data", SelfOptions(tokens=12_000, text_share=0, length=96, rows=32, top_k=0, top_p=1.0)
    )
    result = Made(parent, root / "data", root / "out" / "adapter")
    torch.set_num_threads(1)
    _core.refactor(options(result, root / "out"))
    return result


def reference(made: Made):
    """transformers with the adapter on."""
    model = transformers.AutoModelForCausalLM.from_pretrained(made.parent, dtype=torch.float32).eval()
    return model, outrider.hf.apply(model, made.adapter)


def some_ids(texts: int, tokens: int) -> torch.Tensor:
    return torch.randint(3, VOCAB, (texts, tokens), generator=torch.Generator().manual_seed(4))


def test_the_folder_holds_only_what_is_not_the_parent(made):
    names = {path.name for path in made.adapter.iterdir()}
    assert names == {
        "outrider.json",
        "outrider_masks.safetensors",
        "outrider_router.safetensors",
        "outrider_adapter.safetensors",
    }
    adapter = load_artifact(made.adapter).adapter
    assert (adapter.rank, adapter.dtype) == (4, "bfloat16")
    assert len(adapter.pairs) == 7 * 3
    assert adapter.pairs[DOWN][0].shape == (4, 96)
    assert adapter.base_sha256 == _core.weights_sha256(str(made.parent))
    assert any(bool(b.any()) for _, b in adapter.pairs.values()), "it was tuned"


def test_the_sum_of_the_weights_is_as_described(made):
    digest = hashlib.sha256()
    for name, tensor in sorted(load_file(made.parent / "model.safetensors").items()):
        digest.update(f"{name}\0F32\0{','.join(map(str, tensor.shape))}\0".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    assert digest.hexdigest() == _core.weights_sha256(str(made.parent))


def test_the_core_computes_what_transformers_computes(made):
    model, routed = reference(made)
    mine = _core.Model.load_routed(str(made.adapter), str(made.parent))
    ids = some_ids(2, 40)
    with torch.no_grad():
        expected = model(ids).logits
    found = mine.logits(ids)
    assert torch.equal(mine.expert_ids(ids), routed.ids)
    assert len(routed.ids.unique()) > 1
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()
    assert (mine.cached_logits(ids, [17, 1, 1, 21]) - expected).abs().max() <= 1e-4 * expected.abs().max()
    dense = _core.Model.load(str(made.parent)).logits(ids)
    assert (dense - expected).abs().max() > 1e-2 * expected.abs().max()


def test_taking_the_adapter_off_leaves_the_parent(made):
    model, routed = reference(made)
    routed.remove()
    parent = load_file(made.parent / "model.safetensors")
    for name, weight in model.named_parameters():
        assert torch.equal(weight, parent[name]), name


def test_greedy_ids_are_those_of_transformers(made):
    model, _ = reference(made)
    mine = _core.Model.load_routed(str(made.adapter), str(made.parent))
    for seed in range(3):
        prompt = torch.randint(3, VOCAB, (1, 7), generator=torch.Generator().manual_seed(seed))
        expected = model.generate(
            prompt, max_new_tokens=40, do_sample=False, eos_token_id=None, pad_token_id=0, use_cache=True
        )
        ids: list[int] = []
        mine.generate(prompt[0].tolist(), ids.append, 40)
        assert ids == expected[0, 7:].tolist()


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_merged_it_is_a_model_folder(made, tmp_path, dtype):
    arguments = ["export", str(made.adapter), "--model", str(made.parent), "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, [*arguments, "--dtype", dtype])
    assert done.exit_code == 0, done.output
    out = tmp_path / "out"
    header = json.loads((out / "outrider.json").read_text())
    named = {path.name for path in out.iterdir()} - {"outrider.json", "outrider.sha256"}
    assert set(header["files"]) == named >= {"model.safetensors", "config.json", "tokenizer.json"}
    assert "outrider_adapter.safetensors" not in named
    model, _ = reference(made)
    merged = transformers.AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    outrider.hf.apply(merged, out)
    ids = some_ids(2, 30)
    with torch.no_grad():
        expected, found = model(ids).logits, merged(ids).logits
    assert (found - expected).abs().max() <= (1e-4 if dtype == "float32" else 3e-2) * expected.abs().max()
    again = CliRunner().invoke(app, arguments)
    assert again.exit_code == 2
    assert "E_EXISTS" in again.stderr
    other = ["export", str(out), "--model", str(made.parent), "--out", str(tmp_path / "twice")]
    assert "E_MODEL" in CliRunner().invoke(app, other).stderr
    assert not (tmp_path / "twice").exists()


def test_int8_is_close_and_small(made, tmp_path):
    narrow = tmp_path / "out" / "adapter"
    _core.refactor(options(made, tmp_path / "out", adapter__dtype="int8"))
    small, wide = load_adapter(narrow / "outrider_adapter.safetensors"), load_artifact(made.adapter).adapter
    for name, (a, b) in wide.pairs.items():
        expected, (c, d) = b @ a, small.pairs[name]
        assert (d @ c - expected).abs().max() <= 0.03 * expected.abs().max() + 1e-9, name
    sizes = [(folder / "outrider_adapter.safetensors").stat().st_size for folder in (narrow, made.adapter)]
    assert sizes[0] < sizes[1]
    mine = _core.Model.load_routed(str(narrow), str(made.parent))
    model = transformers.AutoModelForCausalLM.from_pretrained(made.parent, dtype=torch.float32).eval()
    outrider.hf.apply(model, narrow)
    ids = some_ids(1, 30)
    with torch.no_grad():
        expected = model(ids).logits
    assert (mine.logits(ids) - expected).abs().max() <= 1e-4 * expected.abs().max()


def damaged(made: Made, folder: Path, change) -> Path:
    """A copy whose adapter file holds what `change(tensors, metadata)` leaves."""
    shutil.copytree(made.adapter, folder)
    path = folder / "outrider_adapter.safetensors"
    tensors, metadata = load_file(path), {"format": "1", "rank": "4", "dtype": "bfloat16", "scale": "1"}
    change(tensors, metadata)
    save_file(tensors, path, metadata)
    return path


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t, m: t.pop(f"{DOWN}.b"), f"{DOWN}.b: found no such tensor"),
        (lambda t, m: t.update({f"{DOWN}.a": torch.zeros(3, 96).bfloat16()}), f"{DOWN}: found rank 3 and 4"),
        (lambda t, m: t[f"{DOWN}.a"].fill_(float("nan")), "NaN"),
        (lambda t, m: t.update({f"{DOWN}.a": torch.zeros(4, 96)}), "torch.float32"),
        (lambda t, m: m.update(dtype="int8"), "expected a matrix of torch.int8"),
        (lambda t, m: m.update(dtype="int4"), "'int4'"),
        (lambda t, m: m.update(format="2"), "format: found '2'"),
        (lambda t, m: m.update(rank="0"), "a rank above 0"),
        (lambda t, m: m.pop("scale"), "two numbers"),
    ],
)
def test_files_that_are_no_adapter_are_named(made, tmp_path, change, says):
    path = damaged(made, tmp_path / "copy", change)
    with pytest.raises(InputError, match="E_ADAPTER") as caught:
        load_adapter(path)
    assert says in str(caught.value)


def test_an_adapter_of_another_model_changes_nothing(made):
    config = transformers.LlamaConfig(
        hidden_size=48, intermediate_size=96, num_hidden_layers=3, num_attention_heads=6, vocab_size=VOCAB
    )
    model = transformers.LlamaForCausalLM(config)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    with pytest.raises(InputError, match=r"E_ADAPTER: .*k_proj.weight: found \[48, 48\], expected \[16, 48\]"):
        outrider.hf.apply(model, made.adapter)
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())


def test_a_damaged_file_is_noticed(made, tmp_path):
    copy = shutil.copytree(made.adapter, tmp_path / "copy")
    seal(copy)
    assert _core.Model.load_routed(str(copy), str(made.parent)).vocab == VOCAB
    path = copy / "outrider_adapter.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"E_ARTIFACT: .*outrider_adapter.safetensors: sha256"):
        _core.Model.load_routed(str(copy), str(made.parent))
    with pytest.raises(InputError, match="sha256"):
        load_artifact(copy)


def test_commands_take_it_with_its_parent(made, tmp_path):
    parent = ["--parent", str(made.parent)]
    asked = ["generate", str(made.adapter), "--prompt", "what is the other thing", "--new-tokens", "12"]
    alone = CliRunner().invoke(app, [*asked, *parent])
    assert alone.exit_code == 0, alone.output
    both = CliRunner().invoke(app, [*asked, *parent, "--compare", str(made.parent)])
    assert both.exit_code == 0, both.output
    first, second = both.stdout.split(f"== {made.adapter}\n")
    assert first.startswith(f"== {made.parent}\n")
    assert first.count("tokens/s") == second.count("tokens/s") == 1
    assert second.startswith(alone.stdout)
    dense = CliRunner().invoke(app, ["generate", str(made.parent), *asked[2:]])
    assert dense.stdout in first
    plain = CliRunner().invoke(app, [*asked, *parent, "--plain"])
    assert plain.stdout != alone.stdout, "the template matters"
    out = tmp_path / "prompts.json"
    measured = ["eval", "prompts", str(made.adapter), *parent, "--limit", "3", "--out", str(out)]
    done = CliRunner().invoke(app, measured)
    assert done.exit_code == 0, done.output
    result = json.loads(out.read_text())
    assert result["prompts"] == len(result["answers"]) == 3
    assert result["agreed"] == sum(row["agrees"] for row in result["answers"])
    assert f"{result['agreed']} of 3 agree" in done.stdout
    data = ["--data", str(made.data), "--max-tokens", "200"]
    done = CliRunner().invoke(app, ["eval", "perplexity", str(made.adapter), *parent, *data])
    assert done.exit_code == 0, done.output
    assert "chat: " in done.stdout


def test_a_refactoring_leaves_its_adapter_with_the_card(made, tmp_path):
    out = tmp_path / "moe"
    changes = tuple((key, value) for key, value in json.loads(options(made, out)).items() if key not in FILES)
    refactoring.refactor(
        refactoring.Request(model=made.parent, data=made.data, out=out, rows=("ours",), active=0.75, changes=changes)
    )
    assert {"quality_card.json", "quality_card.md", "outrider_adapter.safetensors"} <= {
        path.name for path in (out / "adapter").iterdir()
    }
    assert (out / "adapter" / "quality_card.md").read_bytes() == (out / "quality_card.md").read_bytes()
    files = json.loads((out / "adapter" / "outrider.json").read_text())["files"]
    assert set(files) == {f"outrider_{name}.safetensors" for name in ("masks", "router", "adapter")}
    ids = some_ids(1, 20)
    merged = _core.Model.load_routed(str(out))
    beside = _core.Model.load_routed(str(out / "adapter"), str(made.parent))
    assert torch.equal(merged.expert_ids(ids), beside.expert_ids(ids))
    assert (merged.logits(ids) - beside.logits(ids)).abs().max() <= 0.03 * beside.logits(ids).abs().max()


def test_what_lacks_or_has_too_much_is_one_line(made, tmp_path):
    other = make_chat_model(tmp_path / "other")
    tensors = load_file(other / "model.safetensors")
    tensors["model.norm.weight"] += 1
    save_file(tensors, other / "model.safetensors", {"format": "pt"})
    prompt = ["--prompt", "what"]
    data = ["--data", str(made.data)]
    for arguments, says in (
        (["generate", str(made.adapter), *prompt], "expected --parent"),
        (["generate", str(made.adapter), "--parent", str(other), *prompt], "sha256 of the weights"),
        (["generate", str(made.parent), "--parent", str(made.parent), *prompt], "expected a refactored model"),
        (["eval", "perplexity", str(made.adapter), *data], "expected --parent"),
        (["eval", "perplexity", str(made.adapter), "--parent", str(other), *data], "sha256 of the weights"),
        (["export", str(made.adapter), "--model", str(other), "--out", str(tmp_path / "x")], "sha256 of the weights"),
        (["export", str(made.adapter), "--model", str(other), "--out", str(tmp_path / "x"), "--dtype", "q"], "E_DTYPE"),
    ):
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 2, done.output
        assert done.stderr.startswith("outrider: error E_")
        assert says in done.stderr
        assert done.stderr.count("\n") == 1
    assert not (tmp_path / "x").exists()


def test_a_dense_model_is_needed_to_write_text(made):
    mine = _core.Model.load_routed(str(made.adapter), str(made.parent))
    with pytest.raises(ValueError, match="E_MODEL: sample_texts: found experts"):
        mine.sample_texts([[5]], [([2], [], 0.0)], lambda *_: True, 1)
    with pytest.raises(ValueError, match="E_MODEL: expert_ids"):
        _core.Model.load(str(made.parent)).expert_ids(some_ids(1, 3))


def test_the_gpu_executor_serves_it_beside_its_parent(made):
    ids = list(range(5, 60, 3))
    expected: list[int] = []
    _core.Model.load_routed(str(made.adapter), str(made.parent)).generate(ids, expected.append, 8)
    engine = _core.ServeEngine(str(made.adapter), str(made.parent), device="reference", threads=1, kv_tokens=512)
    engine.submit(ids, max_tokens=8)
    assert engine.wait_idle(60)
    events = engine.poll(64)
    engine.close()
    assert [token for event in events for token in event["tokens"]] == expected
    assert len(expected) == 8 and events[-1]["error"] == ""
