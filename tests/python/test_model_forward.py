"""The C++ forward pass against transformers, on tiny random models."""

from pathlib import Path

import pytest
import torch
import transformers

from outrider import _core

SIZES = {
    "hidden_size": 48,
    "intermediate_size": 100,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "vocab_size": 160,
    "max_position_embeddings": 128,
}
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


def make_model(config: transformers.PretrainedConfig, folder: Path) -> transformers.PreTrainedModel:
    """A random model in `folder`; weights and biases large enough that every one of them matters."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 0.3 if parameter.dim() == 1 else 0.2
            parameter.add_(torch.randn_like(parameter) * scale)
            assert torch.isfinite(parameter).all(), name
    model.save_pretrained(folder)
    return model


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("name", VARIANTS)
def test_logits_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    reference = make_model(VARIANTS[name], tmp_path)
    model = _core.Model.load(str(tmp_path))
    ids = torch.randint(0, SIZES["vocab_size"], (3, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = reference(ids).logits
        hidden = reference.model(ids).last_hidden_state
    assert relative_error(model.logits(ids), expected) < 1e-5
    assert relative_error(model.hidden(ids), hidden) < 1e-5
