"""The CPU executor and router against the ATen forward pass, on tiny random models and random experts."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from model_fixtures import SIZES, make_model, relative_error, some_ids
from outrider import _core
from safetensors.torch import save_file

WIDE = {k: v for k, v in SIZES.items() if k != "num_attention_heads"} | {"hidden_size": 64, "intermediate_size": 90}
VARIANTS = {
    "llama": transformers.LlamaConfig(**WIDE, num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True),
    "llama-biases": transformers.LlamaConfig(
        **WIDE, num_attention_heads=8, num_key_value_heads=4, head_dim=20, attention_bias=True
    ),
    "llama3-rope": transformers.LlamaConfig(
        **WIDE,
        num_attention_heads=4,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 5e2,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    ),
    "linear-rope": transformers.LlamaConfig(
        **WIDE, num_attention_heads=4, rope_parameters={"rope_type": "linear", "rope_theta": 5e3, "factor": 4.0}
    ),
    "qwen2-window": transformers.Qwen2Config(
        **WIDE,
        num_attention_heads=4,
        num_key_value_heads=2,
        use_sliding_window=True,
        sliding_window=7,
        max_window_layers=1,
    ),
    "mistral-window": transformers.MistralConfig(
        **WIDE, num_attention_heads=4, num_key_value_heads=2, sliding_window=9
    ),
}
ROUTERS = {
    "own": {"width": 48, "heads": 4, "scale": "none", "embed": "own", "attention": True},
    "tied": {"width": 32, "heads": 2, "scale": "sqrt", "embed": "tied", "attention": True},
    "token": {"width": 32, "heads": 2, "scale": "none", "embed": "own", "attention": False},
}
for _config in VARIANTS.values():
    _config.num_hidden_layers = 3
TOKENS = 64


def add_experts(folder: Path, router: dict, experts: int, tau: float) -> None:
    """Random masks and a random router beside the weights of `folder`."""
    generator = torch.Generator().manual_seed(3)
    config = json.loads((folder / "config.json").read_text())
    shape = (config["num_hidden_layers"], config["intermediate_size"])
    sig = torch.randint(0, 1 << experts, shape, generator=generator, dtype=torch.uint8)
    save_file({"sig": sig}, folder / "outrider_masks.safetensors")
    w = router["width"]
    names = ["block.w1", "block.w2"] + ([f"block.{p}" for p in "qkvo"] if router["attention"] else [])
    tensors = {f"{n}.weight": torch.randn(w, w, generator=generator) * w**-0.5 for n in names}
    tensors |= {f"{n}.bias": torch.randn(w, generator=generator) * 0.2 for n in names}
    norms = ["block.mlp_norm", "norm"] + (["block.attn_norm"] if router["attention"] else [])
    tensors |= {f"{n}.weight": 1 + torch.randn(w, generator=generator) * 0.2 for n in norms}
    tensors["head.weight"] = torch.randn(experts, w, generator=generator) * 2 * w**-0.5
    tensors["head.bias"] = torch.randn(experts, generator=generator) * 0.1
    if router["embed"] == "own":
        tensors["embed.weight"] = torch.randn(config["vocab_size"], w, generator=generator)
    save_file(tensors, folder / "outrider_router.safetensors")
    header = {"version": 1, "experts": experts, "tau": tau, "router": router}
    (folder / "outrider.json").write_text(json.dumps(header))


def open_passes(folder: Path, form: str = "f32", threads: int = 2, parent: str = "") -> _core.CpuPasses:
    return _core.CpuPasses(str(folder), parent, form, threads=threads, pages=32, step_tokens=2 * TOKENS)


def some_pages(text: int) -> np.ndarray:
    return np.arange(5, dtype=np.int32)[::-1] * 3 + text


def route(passes: _core.CpuPasses, ids: np.ndarray) -> np.ndarray:
    if passes.shape["experts"] == 0:
        return np.zeros(0, np.uint8)
    return passes.route([_core.CpuRoute(ids, 0, some_pages(1))])


@pytest.mark.parametrize("name", VARIANTS)
def test_logits_of_dense_models_are_those_of_the_forward_pass(name: str, tmp_path: Path) -> None:
    make_model(VARIANTS[name], tmp_path)
    ids = some_ids(2, TOKENS)
    expected = _core.Model.load(str(tmp_path)).logits(ids)
    passes = open_passes(tmp_path)
    runs = [_core.PassRun(row.numpy(), [], 0, some_pages(i)) for i, row in enumerate(ids)]
    logits, cost = passes.run(runs)
    assert relative_error(torch.from_numpy(logits).view_as(expected), expected) < 1e-5
    assert cost["weight_bytes"] >= passes.fixed_bytes + passes.ffn_bytes(1)
    assert cost["ffn_bytes"] == passes.ffn_bytes(1)


@pytest.mark.parametrize("tau", [0.0, 0.4])
@pytest.mark.parametrize("router", ROUTERS)
def test_routed_models_choose_and_compute_as_the_forward_pass(router: str, tau: float, tmp_path: Path) -> None:
    make_model(VARIANTS["llama"], tmp_path)
    add_experts(tmp_path, ROUTERS[router], experts=5, tau=tau)
    ids = some_ids(1, TOKENS)
    model = _core.Model.load_routed(str(tmp_path))
    expected, experts = model.logits(ids), model.expert_ids(ids).flatten().numpy()
    passes = open_passes(tmp_path)
    chosen = route(passes, ids[0].numpy())
    assert chosen.tolist() == experts.tolist()
    assert len(set(chosen.tolist())) > 2
    logits, cost = passes.run([_core.PassRun(ids[0].numpy(), chosen, 0, some_pages(0))])
    assert relative_error(torch.from_numpy(logits), expected[0]) < 1e-5
    assert cost["ffn_bytes"] == passes.ffn_bytes(sum(1 << e for e in set(chosen.tolist())))


def test_one_mask_is_a_smaller_dense_model(tmp_path: Path) -> None:
    make_model(VARIANTS["qwen2-window"], tmp_path)
    add_experts(tmp_path, ROUTERS["own"], experts=1, tau=0)
    header = json.loads((tmp_path / "outrider.json").read_text())
    (tmp_path / "outrider.json").write_text(json.dumps({k: v for k, v in header.items() if k != "router"}))
    ids = some_ids(1, TOKENS)
    expected = _core.Model.load_routed(str(tmp_path)).logits(ids)
    passes = open_passes(tmp_path)
    assert passes.shape["experts"] == 0
    logits, _ = passes.run([_core.PassRun(ids[0].numpy(), [], 0, some_pages(0))])
    assert relative_error(torch.from_numpy(logits), expected[0]) < 1e-5


@pytest.mark.parametrize("form", ["f32", "bf16", "int8"])
def test_bits_do_not_depend_on_pieces_or_threads(form: str, tmp_path: Path) -> None:
    make_model(VARIANTS["llama-biases"], tmp_path)
    add_experts(tmp_path, ROUTERS["own"], experts=5, tau=0.1)
    ids = some_ids(1, TOKENS)[0].numpy().astype(np.int32)
    one, two = open_passes(tmp_path, form, threads=1), open_passes(tmp_path, form, threads=2)
    experts = route(one, ids)
    whole, _ = one.run([_core.PassRun(ids, experts, 0, some_pages(0))])
    pieces = []
    for begin in range(0, TOKENS, 9):
        part = slice(begin, begin + 9)
        pieces.append(two.run([_core.PassRun(ids[part], experts[part], begin, some_pages(2))])[0])
    assert np.concatenate(pieces).tobytes() == whole.tobytes()


@pytest.mark.parametrize("form", ["f32", "bf16", "int8"])
@pytest.mark.parametrize("tied", [True, False])
def test_greedy_ids_are_the_largest_of_all_logits(form: str, tied: bool, tmp_path: Path) -> None:
    sizes = WIDE | {"vocab_size": 3001, "tie_word_embeddings": tied}
    make_model(transformers.LlamaConfig(**sizes, num_attention_heads=4), tmp_path)
    passes = open_passes(tmp_path, form)
    ids = some_ids(2, TOKENS).numpy().astype(np.int32)
    runs = [_core.PassRun(row, [], 0, some_pages(i), 5) for i, row in enumerate(ids)]
    logits, chosen = passes.run(runs)[0], passes.greedy(runs)[0]
    assert chosen.shape == (2 * (TOKENS - 5), 1)
    assert chosen[:, 0].tolist() == logits.argmax(axis=1).tolist()
    last = [_core.PassRun(ids[0], [], 0, some_pages(0), TOKENS - 1)]
    whole, cost = passes.run(last)[1], passes.greedy(last)[1]
    if form == "int8":
        assert cost["weight_bytes"] == whole["weight_bytes"]
    else:
        assert cost["weight_bytes"] < whole["weight_bytes"] - 3001 * 64 * (2 if form == "f32" else 0.5)


def test_what_cannot_be_served_is_named(tmp_path: Path) -> None:
    biased = transformers.LlamaConfig(**WIDE, num_attention_heads=4, mlp_bias=True)
    make_model(biased, tmp_path)
    with pytest.raises(ValueError, match="E_CONFIG: mlp_bias: found true"):
        open_passes(tmp_path)
    with pytest.raises(ValueError, match="E_OPTION: format: found q4"):
        open_passes(tmp_path, "q4")
    with pytest.raises(ValueError, match="expected no parent"):
        open_passes(tmp_path, parent="elsewhere")
