"""Tiny random models for the tests of the room `model`, and the one real model where it is cached."""

from pathlib import Path

import pytest
import torch
import transformers
from outrider.model_import import cached_smollm2

SIZES = {
    "hidden_size": 48,
    "intermediate_size": 100,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "vocab_size": 160,
    "max_position_embeddings": 128,
}


def make_model(config: transformers.PretrainedConfig, folder: Path) -> transformers.PreTrainedModel:
    """A random float32 model in `folder`; weights and biases large enough that every one of them matters."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.3 if parameter.dim() == 1 else 0.2))
    model.save_pretrained(folder)
    return model


def some_ids(texts: int, tokens: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(0, SIZES["vocab_size"], (texts, tokens), generator=torch.Generator().manual_seed(seed))


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference, over the largest expected value."""
    return ((found - expected).abs().max() / expected.abs().max()).item()


def require_smollm2() -> Path:
    """The cached GGUF file; skips, and says how to get it, where there is none."""
    path = cached_smollm2()
    if path is None:
        pytest.skip("the real model is not cached: set OUTRIDER_CACHE, or run `outrider import smollm2-135m DIR`")
    return path
