"""GGUF files become Hugging Face folders; damaged ones are named and leave nothing behind."""

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
import safetensors.torch
import torch
import transformers
from gguf_files import byte_tokenizer, gguf_name, write_gguf
from hypothesis import given, settings
from hypothesis import strategies as st
from model_fixtures import make_model, relative_error
from outrider import _core
from outrider.cli import app
from outrider.model_import import gguf_import, import_gguf, smollm2
from outrider.model_import.gguf_check import check_gguf
from outrider.refactor.errors import InputError
from outrider.refactor.sums import SUMS, check_sums
from typer.testing import CliRunner

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 288,
    "max_position_embeddings": 64,
}
CONFIGS = {
    "tied": transformers.LlamaConfig(**SIZES, tie_word_embeddings=True, head_dim=16, rms_norm_eps=1e-5),
    "untied": transformers.LlamaConfig(
        **SIZES, head_dim=16, rope_parameters={"rope_type": "default", "rope_theta": 700}
    ),
    "qwen2": transformers.Qwen2Config(**SIZES),
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> tuple[transformers.PreTrainedModel, Path]:
    """The tied model and its GGUF file."""
    folder = tmp_path_factory.mktemp("gguf")
    model = make_model(CONFIGS["tied"], folder / "model")
    write_gguf(folder / "tied.gguf", model)
    return model, folder / "tied.gguf"


@pytest.mark.parametrize("name", CONFIGS)
def test_the_model_survives(name: str, tmp_path: Path) -> None:
    reference = make_model(CONFIGS[name], tmp_path / "model")
    write_gguf(tmp_path / "m.gguf", reference)
    import_gguf(tmp_path / "m.gguf", tmp_path / "out", dtype="float32")
    ids = torch.randint(0, 288, (2, 30), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected = reference(ids).logits
        reloaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)(ids).logits
    assert relative_error(_core.Model.load(str(tmp_path / "out")).logits(ids), expected) < 1e-5
    assert relative_error(reloaded, expected) < 1e-6
    text = "the cat, the dög\n"
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert len(tokenizer(text).input_ids) <= len(byte_tokenizer().encode(text).ids) + 1
    check_sums(tmp_path / "out")
    assert (tmp_path / "out" / SUMS).read_text().count("\n") == len(list((tmp_path / "out").iterdir())) - 1


def test_shards_and_bfloat16(source: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reference, path = source
    monkeypatch.setattr(gguf_import, "SHARD_BYTES_MAX", 30_000)
    import_gguf(path, tmp_path / "out")
    names = sorted(file.name for file in (tmp_path / "out").glob("*.safetensors"))
    assert len(names) > 3
    assert names[0] == f"model-00001-of-{len(names):05d}.safetensors"
    model = _core.Model.load(str(tmp_path / "out"))
    for name, values in model.parameters().items():
        assert torch.equal(values, reference.get_parameter(name).detach().bfloat16().float()), name


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_1"])
def test_quantised_weights_are_expanded(kind: str, tmp_path: Path) -> None:
    reference = make_model(CONFIGS["tied"], tmp_path / "model")
    write_gguf(tmp_path / "m.gguf", reference, kind=kind)
    import_gguf(tmp_path / "m.gguf", tmp_path / "out", dtype="float32")
    found = safetensors.torch.load_file(tmp_path / "out" / "model.safetensors")
    for name, parameter in reference.named_parameters():
        blocks = parameter.detach().reshape(-1, 32) if parameter.dim() == 2 else parameter.detach().reshape(1, -1)
        # Half a step of the coarser of both forms, and the rounding of its float16 scale and minimum.
        span = blocks.amax(-1) - blocks.amin(-1) if kind == "Q4_1" else blocks.abs().amax(-1)
        step = span / (15 if kind == "Q4_1" else 127)
        bound = (0.51 * step + 1e-3 * blocks.abs().amax(-1)).unsqueeze(1) if parameter.dim() == 2 else torch.zeros(1, 1)
        assert ((found[name].reshape(blocks.shape) - blocks).abs() <= bound).all(), name


def test_q4_1_blocks_are_what_the_format_says() -> None:
    nibbles = [(3 * i) % 16 for i in range(32)]
    packed = bytes(nibbles[i] | nibbles[i + 16] << 4 for i in range(16))
    block = struct.pack("<ee", 0.25, -1.5) + packed
    values = gguf.dequantize(np.frombuffer(block, np.uint8), gguf.GGMLQuantizationType.Q4_1)
    np.testing.assert_array_equal(values, np.array([0.25 * nibble - 1.5 for nibble in nibbles], np.float32))


def test_an_existing_folder_is_refused(source: tuple, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match="E_EXISTS"):
        import_gguf(source[1], tmp_path / "out")
    import_gguf(source[1], tmp_path / "out", force=True)
    assert (tmp_path / "out" / "config.json").is_file()


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        ({"llama.rope.scaling.type": "yarn"}, "llama.rope.scaling.type: found 'yarn', expected none"),
        ({"llama.expert_count": 8}, "llama.expert_count: found 8, expected 0"),
    ],
)
def test_other_functions_are_refused(source: tuple, tmp_path: Path, overrides: dict, complaint: str) -> None:
    write_gguf(tmp_path / "m.gguf", source[0], overrides=overrides)
    with pytest.raises(InputError, match=complaint):
        import_gguf(tmp_path / "m.gguf", tmp_path / "out")
    assert not (tmp_path / "out").exists()


DAMAGE = {
    "magic": (0, b"GGML", "found the magic bytes b'GGML'"),
    "version": (4, struct.pack("<I", 9), "found version 9, expected 2 or 3"),
    "tensors": (8, struct.pack("<Q", 1 << 40), f"found {1 << 40} tensors, expected at most 65536"),
    "fields": (16, struct.pack("<Q", 1 << 50), f"found {1 << 50} metadata fields"),
    "text": (24, struct.pack("<Q", 1 << 60), f"metadata field 0: found {1 << 60} bytes of text"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named(source: tuple, tmp_path: Path, name: str) -> None:
    at, patch, complaint = DAMAGE[name]
    data = bytearray(source[1].read_bytes())
    data[at : at + len(patch)] = patch
    (tmp_path / "m.gguf").write_bytes(data)
    with pytest.raises(InputError, match="E_GGUF") as raised:
        import_gguf(tmp_path / "m.gguf", tmp_path / "out")
    assert complaint in str(raised.value)
    assert not any(path.name.startswith("out") for path in tmp_path.iterdir())


def test_tensors_beyond_the_end_are_named(source: tuple, tmp_path: Path) -> None:
    data = source[1].read_bytes()
    (tmp_path / "m.gguf").write_bytes(data[:-100])
    last = gguf_name("model.norm.weight")
    with pytest.raises(
        InputError, match=rf"E_GGUF: .*: {last}: found data up to byte \d+, expected at most \d+, the end"
    ):
        check_gguf(tmp_path / "m.gguf")


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_no_damage_escapes(source: tuple, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    good = source[1].read_bytes()
    header = good.index(b"token_embd.weight") + 200
    patch = data.draw(st.binary(min_size=1, max_size=8))
    at = data.draw(st.integers(0, header))
    cut = data.draw(st.one_of(st.none(), st.integers(0, header)))
    path = tmp_path_factory.getbasetemp() / "damaged.gguf"
    path.write_bytes((good[:at] + patch + good[at + len(patch) :])[:cut])
    try:
        assert "output_norm.weight" in check_gguf(path) or patch  # a changed name is no damage
    except InputError as error:
        assert error.code == "E_GGUF"


def test_the_command_prints_one_line_and_exits_with_2(source: tuple, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["import", str(source[1]), str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert "llama, 2 layers, 288 tokens, bfloat16" in done.output
    done = CliRunner().invoke(app, ["import", str(source[1]), str(tmp_path / "out")])
    assert done.exit_code == 2
    assert done.output.count("\n") == 1
    assert done.output.startswith(f"outrider: error E_EXISTS: {tmp_path}/out: output: found")
    prompt = ["generate", str(tmp_path / "out"), "--prompt", "the cat", "--new-tokens", "5"]
    done = CliRunner().invoke(app, prompt)
    assert done.exit_code == 0, done.output
    assert done.output == CliRunner().invoke(app, prompt).output
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    tokenizer.add_tokens(["<one too many>"])
    tokenizer.save_pretrained(tmp_path / "out")
    done = CliRunner().invoke(app, prompt)
    assert done.exit_code == 2
    assert "E_VOCAB" in done.output
    assert "found 289 entries, expected at most the 288 rows" in done.output
    (tmp_path / "out" / "model.safetensors").unlink()
    done = CliRunner().invoke(app, prompt)
    assert done.exit_code == 2
    assert done.output.startswith(f"outrider: error E_SHARDS: {tmp_path}/out: found neither model.safetensors")


def test_a_wrong_download_is_not_kept(tmp_path: Path) -> None:
    assert smollm2.cached_smollm2(tmp_path) is None
    (tmp_path / smollm2.SDIST).write_bytes(b"no archive")
    with pytest.raises(InputError, match="E_HASH"):
        smollm2.cached_smollm2(tmp_path)
    (tmp_path / smollm2.FILE).write_bytes(b"GGUF")
    with pytest.raises(InputError, match=f"md5: found .*, expected {smollm2.FILE_MD5}"):
        smollm2.fetch_smollm2(tmp_path)
