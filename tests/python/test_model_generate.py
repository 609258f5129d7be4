"""Generation, saving, and what the native model says of bad input."""

import json
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch
import transformers
from model_fixtures import SIZES, make_model, some_ids
from outrider import _core

CONFIG = transformers.LlamaConfig(**SIZES, num_key_value_heads=2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_model(CONFIG, tmp_path)
    return tmp_path


def generate(model, prompt: list[int], count: int, **options) -> list[int]:
    made: list[int] = []
    model.generate(prompt, made.append, count, **options)
    return made


def test_greedy_text_is_that_of_full_passes(folder: Path) -> None:
    model = _core.Model.load(str(folder))
    prompt = some_ids(1, 9)[0].tolist()
    made = generate(model, prompt, 20)
    text = list(prompt)
    for token in made:
        assert model.logits(torch.tensor([text]))[0, -1].argmax().item() == token
        text.append(token)
    assert len(made) == 20


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_model_whose_logits_overflow_writes_nothing(folder: Path, temperature: float) -> None:
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    head = weights["lm_head.weight"]
    weights["lm_head.weight"] = head / head.abs().max() * 3e38
    safetensors.torch.save_file(weights, folder / "model.safetensors", {"format": "pt"})
    made: list[int] = []
    with pytest.raises(ValueError, match="E_LOGITS: token 3 of the text: a logit is infinite or not a number"):
        _core.Model.load(str(folder)).generate([1, 2, 3], made.append, 10, temperature=temperature)
    assert made == []


def test_samples_follow_the_seed(folder: Path) -> None:
    model = _core.Model.load(str(folder))
    texts = [generate(model, [1, 2, 3], 30, temperature=3.0, seed=seed) for seed in (1, 1, 2)]
    assert texts[0] == texts[1]
    assert texts[0] != texts[2]


def test_reasons_to_stop(folder: Path) -> None:
    model = _core.Model.load(str(folder))
    made = generate(model, [5], 10)
    assert model.generate([5], lambda _: True, 10, [made[2]]) == "end_id"
    assert model.generate([5], lambda _: False, 10) == "callback"
    assert model.generate([5], lambda _: None, 10) == "length"
    full = [5] * SIZES["max_position_embeddings"]
    assert model.generate(full, lambda _: True, 10) == "context_full"
    assert generate(model, [5] * 120, 500) == generate(model, [5] * 120, 9)


def test_an_exception_of_the_callback_arrives(folder: Path) -> None:
    model = _core.Model.load(str(folder))

    def stop(_: int) -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        model.generate([5], stop, 10)


@pytest.mark.parametrize("shard_bytes_max", [1 << 30, 20_000])
def test_what_is_saved_is_what_transformers_loads(folder: Path, tmp_path: Path, shard_bytes_max: int) -> None:
    model = _core.Model.load(str(folder))
    out = tmp_path / "out"
    out.mkdir()
    model.save(str(out), "float32", shard_bytes_max)
    (out / "config.json").write_text(model.config_json("float32"))
    ids = some_ids(2, 20)
    reloaded = transformers.AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(reloaded(ids).logits, model.logits(ids), rtol=0, atol=1e-5)
    files = sorted(out.glob("*.safetensors"))
    assert len(files) == 1 if shard_bytes_max > 1 << 20 else len(files) > 10
    for file in files:
        with safetensors.safe_open(file, "pt") as shard:
            sizes = [shard.get_tensor(name).nbytes for name in shard.keys()]  # noqa: SIM118
        assert len(sizes) == 1 or sum(sizes) <= shard_bytes_max


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "mixtral"}, r"^error E_CONFIG: .*/config.json: model_type: found \"mixtral\", expected llama"),
        (
            {"vocab_size": 161},
            r"E_TENSORS: .*embed_tokens.weight: found shape \[160, 48\], expected \[161, 48\]$",
        ),
        ({"attention_bias": True}, r"^error E_TENSORS: .*missing tensors: model.layers.0.self_attn.q_proj.bias"),
    ],
)
def test_configs_that_do_not_fit_are_named(folder: Path, change: dict, message: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    if "model_type" in change:
        config.pop("architectures")
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ValueError, match=message):
        _core.Model.load(str(folder))


def test_ids_are_checked(folder: Path) -> None:
    model = _core.Model.load(str(folder))
    with pytest.raises(ValueError, match="E_IDS: ids: found 160, expected 0 to 159"):
        model.logits(torch.tensor([[3, 160]]))
    with pytest.raises(ValueError, match="E_IDS: ids: found 129 tokens, expected at most 128"):
        model.logits(torch.zeros(1, 129, dtype=torch.long))
    with pytest.raises(ValueError, match="E_IDS"):
        model.logits(torch.zeros(1, 3))
    with pytest.raises(ValueError, match="E_PROMPT: prompt: found no token"):
        model.generate([], lambda _: True)
    with pytest.raises(ValueError, match="E_DTYPE: dtype: found int8"):
        _core.Model.load(str(folder), "int8")
