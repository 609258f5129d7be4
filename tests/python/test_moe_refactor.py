"""A refactoring from Python, and its files against independent implementations in plain PyTorch."""

import itertools
import json
import math
from pathlib import Path

import numpy
import outrider.hf
import pytest
import torch
import transformers
from outrider import _core
from outrider.refactor.artifact import load_artifact

VOCAB, DOMAINS, SEQUENCE = 512, ("a", "b", "c"), 64


def make_text(domain: int, split: int, tokens: int) -> numpy.ndarray:
    """A walk over 40 tokens of the domain's own, one step in eight at random."""
    random = numpy.random.default_rng((domain, split))
    ids, at = [], 0
    for jump, anywhere in zip(random.integers(8, size=tokens), random.integers(40, size=tokens), strict=True):
        at = int(anywhere) if jump == 0 else (at * (2 * domain + 3) + domain + 1) % 40
        ids.append(150 * domain + at)
    return numpy.array(ids, dtype="<u2")


def make_data(folder: Path) -> None:
    (folder / "tokens").mkdir(parents=True)
    splits = {name: {} for name in DOMAINS}
    for domain, name in enumerate(DOMAINS):
        for number, (split, tokens) in enumerate({"train": 8000, "valid": 1000, "test": 1000}.items()):
            make_text(domain, number, tokens).tofile(folder / "tokens" / f"{name}.{split}.bin")
            splits[name][split] = {"tokens": tokens, "documents": list(range(0, tokens, 250))}
    header = {"format": 1, "vocab": VOCAB, "dtype": "uint16", "domains": list(DOMAINS), "splits": splits}
    (folder / "data.json").write_text(json.dumps(header))


def make_model(folder: Path) -> None:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=64,
        intermediate_size=172,
        num_hidden_layers=5,
        num_attention_heads=8,
        num_key_value_heads=4,
        vocab_size=VOCAB,
        max_position_embeddings=256,
        tie_word_embeddings=True,
    )
    transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("refactor")
    make_data(root / "data")
    make_model(root / "parent")
    return root


def options(folder: Path, **changes) -> str:
    base = {
        "model": str(folder / "parent"),
        "data": str(folder / "data"),
        "seed": 3,
        "experts.count": 4,
        "calibration.tokens": 128,
        "router.width": 32,
        "rounds": 2,
        "router.steps": 6,
        "expert.steps": 10,
        "batch": 8,
        "sequence": SEQUENCE,
        "expert.rate": 3e-3,
        "router.rate": 3e-3,
        "eval_tokens": 512,
    }
    return json.dumps(base | {key.replace("__", "."): value for key, value in changes.items()})


@pytest.fixture(scope="module")
def refactored(folder: Path) -> tuple[Path, dict, list[dict]]:
    torch.set_num_threads(1)
    steps: list[dict] = []
    out = folder / "out"
    result = json.loads(_core.refactor(options(folder, out=str(out)), steps.append))
    return out, result, steps


def test_progress_reports_every_step_and_the_loss_falls(refactored):
    out, result, steps = refactored
    assert [s["position"] for s in steps] == list(range(1, 33))
    assert {s["positions"] for s in steps} == {32}
    experts = [s["loss"] for s in steps if s["stage"] == "expert"]
    assert experts[0] == pytest.approx(math.log(VOCAB), abs=0.3)
    assert experts[-1] < experts[0] - 0.5
    assert result["done"]
    assert result == json.loads((out / "result.json").read_text())
    assert len((out / "log.jsonl").read_text().splitlines()) == 32


def test_masks_have_exactly_k_channels(refactored):
    artifact = load_artifact(refactored[0] / "model")
    assert artifact.masks().sum(-1).unique().tolist() == [86]
    found = json.loads((refactored[0] / "experts.json").read_text())
    permanent = (artifact.masks().sum(0) == 4).sum(-1).tolist()
    assert permanent == [layer["permanent"] for layer in found["layers"]]


def test_pytorch_computes_the_same_loss(refactored, folder):
    out, result, _ = refactored
    model = transformers.AutoModelForCausalLM.from_pretrained(out / "model", dtype=torch.float32)
    routed = outrider.hf.apply(model, out / "model")
    for domain, name in enumerate(DOMAINS):
        text = torch.from_numpy(make_text(domain, 2, 1000).astype("int64"))
        windows, used = 999 // SEQUENCE, 512 // SEQUENCE
        nats, load = 0.0, torch.zeros(4, dtype=torch.int64)
        for window in range(used):
            begin = window * windows // used * SEQUENCE
            piece = text[begin : begin + SEQUENCE + 1]
            with torch.no_grad():
                logits = model(input_ids=piece[None, :-1]).logits[0]
            nats += torch.nn.functional.cross_entropy(logits, piece[1:], reduction="sum").item()
            load += routed.ids.flatten().bincount(minlength=4)
        mine = result["eval"]["test"]["refactored"][name]
        assert mine["tokens"] == used * SEQUENCE
        assert mine["nats"] == pytest.approx(nats, rel=1e-4)
        assert mine["load"] == load.tolist()
    routed.remove()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"router__scale": "none", "router__embed": "own", "router__width": 64},
        {"router__attn": False},
    ],
    ids=["tied-sqrt", "own-none", "no-attention"],
)
def test_router_logits_are_those_of_pytorch(folder, tmp_path, changes):
    bench = _core.Workbench.open(options(folder, **changes))
    bench.make_experts()
    for step in range(3):
        facts = bench.step("router", 0, step, 3)
        assert math.isfinite(facts["loss"])
    bench.export(str(tmp_path / "model"))
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    routed = outrider.hf.apply(model, tmp_path / "model")
    ids = torch.randint(VOCAB, (200,), generator=torch.Generator().manual_seed(1))
    mine = torch.tensor(bench.router_logits(ids.tolist())).view(200, 4)
    theirs = routed.router.logits(ids[None])[0].detach()
    assert (mine - theirs).abs().max() <= 1e-4 * theirs.abs().max()


def test_stored_order_leaves_the_dense_function_unchanged(folder, tmp_path):
    bench = _core.Workbench.open(options(folder))
    bench.make_experts()
    bench.export(str(tmp_path / "model"))
    ids = torch.arange(0, 400, 4)[None]
    parent = _core.Model.load(str(folder / "parent")).logits(ids)
    stored = _core.Model.load(str(tmp_path / "model")).logits(ids)
    assert (parent - stored).abs().max() <= 1e-4 * parent.abs().max()
    signatures = torch.tensor(bench.signatures())
    artifact = load_artifact(tmp_path / "model")
    assert torch.equal(signatures.gather(1, artifact.permutation), artifact.signatures)


def test_more_than_eight_experts_and_stages_from_disk(folder, tmp_path):
    text = options(folder, experts__count=12)
    bench = _core.Workbench.open(text)
    bench.make_experts()
    bench.step("router", 0, 0, 5)
    bench.save(str(tmp_path / "state.safetensors"), 1)
    again = _core.Workbench.open(text)
    assert again.restore(str(tmp_path / "state.safetensors")) == 1
    assert again.signatures() == bench.signatures()
    assert again.step("expert", 0, 0, 5) == bench.step("expert", 0, 0, 5)
    bench.export(str(tmp_path / "model"))
    assert load_artifact(tmp_path / "model").masks(parent_order=True).sum(-1).unique().tolist() == [86]


def test_stopping_from_the_callback_and_errors(folder, tmp_path):
    out = str(tmp_path / "out")
    stopped = json.loads(_core.refactor(options(folder, out=out), lambda step: step["position"] < 3))
    assert stopped == {"done": False, "position": 3}
    with pytest.raises(ValueError, match=r"error E_CHECKPOINT: .*batch: found 8, expected 9"):
        _core.refactor(options(folder, out=out, batch=9))
    with pytest.raises(ValueError, match=r"error E_OPTION: experts.kount: no option has this name"):
        _core.refactor(options(folder, experts__kount=3))

    def fail(step):
        raise RuntimeError("from Python")

    with pytest.raises(RuntimeError, match="from Python"):
        _core.refactor(options(folder, out=out), fail)


def test_signature_order_is_a_gray_code():
    order = _core.signature_order(8)
    assert sorted(order) == list(range(256))
    assert all((a ^ b).bit_count() == 1 for a, b in itertools.pairwise(order))
