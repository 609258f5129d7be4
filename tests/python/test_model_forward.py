"""The C++ forward pass against transformers, on tiny random models."""

from pathlib import Path

import pytest
import torch
import transformers
from model_fixtures import SIZES, make_model, relative_error, some_ids
from outrider import _core

VARIANTS = {
    "llama": transformers.LlamaConfig(**SIZES, num_key_value_heads=2, tie_word_embeddings=True),
    "llama-wide-heads": transformers.LlamaConfig(**SIZES, num_key_value_heads=6, head_dim=16, rms_norm_eps=1e-3),
    "llama-biases": transformers.LlamaConfig(**SIZES, num_key_value_heads=3, attention_bias=True, mlp_bias=True),
    "llama-linear-rope": transformers.LlamaConfig(
        **SIZES,
        rope_parameters={"rope_type": "linear", "rope_theta": 5e3, "factor": 4.0},
    ),
    "llama3-rope": transformers.LlamaConfig(
        **SIZES,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 5e2,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    ),
    "qwen2": transformers.Qwen2Config(**SIZES, num_key_value_heads=2),
    "qwen2-window": transformers.Qwen2Config(
        **SIZES, num_key_value_heads=2, use_sliding_window=True, sliding_window=7, max_window_layers=1
    ),
    "mistral": transformers.MistralConfig(**SIZES, num_key_value_heads=2, head_dim=8, sliding_window=None),
    "mistral-window": transformers.MistralConfig(**SIZES, num_key_value_heads=2, head_dim=8, sliding_window=9),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_logits_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    reference = make_model(VARIANTS[name], tmp_path)
    model = _core.Model.load(str(tmp_path))
    ids = some_ids(3, 40)
    with torch.no_grad():
        expected = reference(ids).logits
        hidden = reference.model(ids).last_hidden_state
    assert relative_error(model.logits(ids), expected) < 1e-5
    assert relative_error(model.hidden(ids), hidden) < 1e-5


# Pieces of a prompt and single tokens; the windows (7 and 9) and the first position of a piece lie inside others.
PIECES = [[40], [17, 1, 1, 1, 20], [1] * 40, [39, 1]]


@pytest.mark.parametrize("pieces", PIECES, ids=lambda pieces: f"{len(pieces)}-pieces")
@pytest.mark.parametrize("name", ["llama", "qwen2-window", "mistral-window"])
def test_cached_logits_are_those_of_one_pass(name: str, pieces: list[int], tmp_path: Path) -> None:
    make_model(VARIANTS[name], tmp_path)
    model = _core.Model.load(str(tmp_path))
    ids = some_ids(2, 40)
    assert relative_error(model.cached_logits(ids, pieces), model.logits(ids)) < 1e-5


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_dtypes_stay_close(dtype: str, tmp_path: Path) -> None:
    make_model(VARIANTS["llama"], tmp_path)
    # Loaded, not converted: a converted model has rounded its rotary frequencies too.
    reference = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=getattr(torch, dtype)).eval()
    model = _core.Model.load(str(tmp_path), dtype)
    ids = some_ids(2, 40)
    with torch.no_grad():
        expected = reference(ids).logits
    assert model.logits(ids).dtype == getattr(torch, dtype)
    # Rounding of the dtype, some dozen operations deep.
    assert relative_error(model.logits(ids).float(), expected.float()) < 4 * torch.finfo(getattr(torch, dtype)).eps


def test_gradients_are_those_of_transformers(tmp_path: Path) -> None:
    reference = make_model(VARIANTS["qwen2"], tmp_path)
    model = _core.Model.load(str(tmp_path))
    parameters = model.parameters()
    assert parameters.keys() == dict(reference.named_parameters()).keys()
    for parameter in parameters.values():
        parameter.requires_grad_()
    ids = some_ids(2, 24)
    model.logits(ids).square().mean().backward()
    reference(ids).logits.square().mean().backward()
    for name, parameter in reference.named_parameters():
        assert parameters[name].grad is not None, name
        assert relative_error(parameters[name].grad, parameter.grad) < 1e-4, name
