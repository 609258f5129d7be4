"""SmolLM2-135M-Instruct, imported from its GGUF file and run, against transformers on the same folder.

Skipped where the model is not cached; a cached one is never downloaded again.
"""

import pydoc_data.topics
from pathlib import Path

import pytest
import torch
import transformers
from model_fixtures import relative_error, require_smollm2
from outrider import _core
from outrider.model_import import import_gguf

TEXTS, TOKENS = 2, 1024  # 2,048 tokens of English prose about Python


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("smollm2") / "model"
    config = import_gguf(require_smollm2(), out, dtype="float32")
    assert (config.layers, config.hidden_size, config.ffn, config.vocab) == (30, 576, 1536, 49152)
    assert (config.heads, config.kv_heads, config.tied) == (9, 3, True)
    assert (config.rope_theta, config.rms_eps, config.max_positions) == (100_000.0, 1e-5, 8192)
    return out


def real_ids(folder: Path) -> torch.Tensor:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    topics = pydoc_data.topics.topics
    text = "".join(topics[name] for name in ("assert", "class", "for", "exceptions", "naming", "typesmapping", "try"))
    ids = tokenizer(text).input_ids
    assert len(ids) >= TEXTS * TOKENS
    return torch.tensor(ids[: TEXTS * TOKENS]).reshape(TEXTS, TOKENS)


def test_logits_and_perplexity(folder: Path) -> None:
    ids = real_ids(folder)
    found = _core.Model.load(str(folder)).logits(ids)
    reference = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = reference(ids).logits
    error = relative_error(found, expected)
    nats = torch.nn.functional.cross_entropy(found[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).item()
    print(f"\n{ids.numel()} tokens: largest relative error {error:.2e}, {nats:.4f} nats per token")
    assert error < 1e-5
    assert (found.argmax(-1) == expected.argmax(-1)).float().mean() > 0.999
    # Rows left in interleaved order give more than twice as many nats.
    assert 1.0 < nats < 3.0


def test_it_knows_its_facts(folder: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    message = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=False)
    model = _core.Model.load(str(folder))
    made: list[int] = []
    assert model.generate(prompt, made.append, 40, model.end_ids) == "end_id"
    assert tokenizer.decode(made, skip_special_tokens=True) == "The capital of France is Paris."
