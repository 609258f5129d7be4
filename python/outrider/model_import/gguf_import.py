"""A GGUF file as a Hugging Face model folder: float weights, config, tokenizer.

GGUF stores the q and k rows of llama-architecture models in interleaved rotary order; Hugging Face files have the two
halves of a head one after the other. Quantised weights are expanded, so the model is the quantised one, not its parent.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from outrider.model_import.gguf_check import CODE, check_gguf
from outrider.refactor.atomic import atomic_folder, write_file
from outrider.refactor.errors import InputError
from outrider.refactor.sums import write_sums

if TYPE_CHECKING:
    import gguf

SHARD_BYTES_MAX = 4 << 30
DTYPE_BYTES = {"bfloat16": 2, "float32": 4}
# GGUF -> Hugging Face; LAYER_NAMES without `blk.N.` and the ending.
GLOBAL_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}

Progress = Callable[[str, int, int], None]  # tensor, tensors done, tensors in all


@dataclass(frozen=True)
class GgufConfig:
    """What the metadata of a GGUF file says about the model."""

    architecture: str
    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    rope_theta: float
    rms_eps: float
    max_positions: int
    tied: bool
    end_id: int | None
    begin_id: int | None

    def to_huggingface(self, dtype: str) -> dict[str, Any]:
        """The fields of config.json."""
        return {
            "architectures": [_ARCHITECTURES[self.architecture]],
            "model_type": self.architecture,
            "hidden_act": "silu",
            "hidden_size": self.hidden_size,
            "intermediate_size": self.ffn,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "vocab_size": self.vocab,
            "max_position_embeddings": self.max_positions,
            "rms_norm_eps": self.rms_eps,
            "rope_theta": self.rope_theta,
            "tie_word_embeddings": self.tied,
            "bos_token_id": self.begin_id,
            "eos_token_id": self.end_id,
            "torch_dtype": dtype,
        }


def import_gguf(
    path: Path | str,
    out_dir: Path | str,
    *,
    dtype: str = "bfloat16",
    force: bool = False,
    progress: Progress | None = None,
) -> GgufConfig:
    """Writes the model of the GGUF file `path` to the new folder `out_dir`, complete or not at all.

    Raises:
        InputError: E_GGUF for a damaged or unsupported file, E_EXISTS, E_DISK, E_DTYPE, E_READ.
    """
    path, out_dir = Path(path), Path(out_dir)
    if dtype not in DTYPE_BYTES:
        raise InputError("E_DTYPE", path, "dtype", dtype, " or ".join(DTYPE_BYTES))
    stored = check_gguf(path)
    reader = open_gguf(path)
    config = read_config(path, reader)
    names = {name: _huggingface_name(path, name) for name in stored}
    elements = sum(int(np.prod(tensor.shape)) for tensor in stored.values())
    with atomic_folder(out_dir, force=force, needed_bytes=elements * DTYPE_BYTES[dtype] + (64 << 20)) as folder:
        write_file(folder / "config.json", json.dumps(config.to_huggingface(dtype), indent=2) + "\n")
        _write_weights(folder, path, reader, config, names, dtype, progress)
        _write_tokenizer(path, folder, config)
        write_sums(folder)
    return config


def open_gguf(path: Path) -> "gguf.GGUFReader":
    import gguf

    try:
        return gguf.GGUFReader(path)
    except (ValueError, KeyError, IndexError, OSError) as error:
        raise InputError(CODE, path, "file", str(error), "what the gguf package can read") from error


def read_config(path: Path, reader: "gguf.GGUFReader") -> GgufConfig:
    """Reads the metadata; every setting that would change the function and is not supported is refused."""
    fields = _Fields(path, reader)
    architecture = fields.get("general.architecture", "")
    if architecture not in _ARCHITECTURES:
        raise InputError(CODE, path, "general.architecture", repr(architecture), " or ".join(_ARCHITECTURES))
    scaling = fields.get(f"{architecture}.rope.scaling.type", "none")
    if scaling not in ("none", ""):
        raise InputError(CODE, path, f"{architecture}.rope.scaling.type", repr(scaling), "none")
    for name in ("expert_count", "attention.sliding_window"):
        if fields.get(f"{architecture}.{name}", 0):
            raise InputError(CODE, path, f"{architecture}.{name}", str(fields.get(f"{architecture}.{name}", 0)), "0")
    heads = fields.need(f"{architecture}.attention.head_count")
    hidden = fields.need(f"{architecture}.embedding_length")
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    if "token_embd.weight" not in tensors:
        raise InputError(CODE, path, "token_embd.weight", "no such tensor", "the embedding")
    return GgufConfig(
        architecture=architecture,
        hidden_size=hidden,
        layers=fields.need(f"{architecture}.block_count"),
        heads=heads,
        kv_heads=fields.get(f"{architecture}.attention.head_count_kv", heads),
        head_dim=fields.get(f"{architecture}.attention.key_length", hidden // heads),
        ffn=fields.need(f"{architecture}.feed_forward_length"),
        vocab=int(tensors["token_embd.weight"].shape[1]),
        rope_theta=_short(fields.get(f"{architecture}.rope.freq_base", 10_000.0)),
        rms_eps=_short(fields.need(f"{architecture}.attention.layer_norm_rms_epsilon")),
        max_positions=fields.need(f"{architecture}.context_length"),
        tied="output.weight" not in tensors,
        end_id=fields.get("tokenizer.ggml.eos_token_id", None),
        begin_id=fields.get("tokenizer.ggml.bos_token_id", None),
    )


class _Fields:
    """Metadata by name, as Python values."""

    def __init__(self, path: Path, reader: "gguf.GGUFReader") -> None:
        self.path, self.reader = path, reader

    def get(self, name: str, absent: Any) -> Any:
        field = self.reader.get_field(name)
        return absent if field is None else field.contents()

    def need(self, name: str) -> Any:
        value = self.get(name, None)
        if not isinstance(value, int | float) or value <= 0:
            raise InputError(CODE, self.path, name, "nothing" if value is None else repr(value), "a positive number")
        return value


def _short(value: float) -> float:
    """A float32 as the shortest decimal that reads back as it: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _huggingface_name(path: Path, name: str) -> str:
    if name in GLOBAL_NAMES:
        return GLOBAL_NAMES[name]
    parts = name.split(".")
    known = len(parts) == 4 and parts[0] == "blk" and parts[1].isdigit() and parts[2] in LAYER_NAMES
    if known and parts[3] in ("weight", "bias"):
        return f"model.layers.{int(parts[1])}.{LAYER_NAMES[parts[2]]}.{parts[3]}"
    raise InputError(CODE, path, name, "a tensor of another architecture", "tensors of a dense llama or qwen2 model")


def unpermute_rows(rows: np.ndarray, heads: int) -> np.ndarray:
    """[heads * head_dim, ...]: interleaved pairs -> first and second halves of each head."""
    return rows.reshape(heads, -1, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def _tensors(reader: "gguf.GGUFReader", config: GgufConfig) -> Iterator[tuple[str, np.ndarray]]:
    """Float32 tensors in Hugging Face orientation and row order, one at a time."""
    import gguf

    for tensor in reader.tensors:
        values = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False)
        values = values.reshape([int(size) for size in reversed(tensor.shape)])
        if config.architecture == "llama" and tensor.name.endswith(("attn_q.weight", "attn_q.bias")):
            values = unpermute_rows(values, config.heads)
        if config.architecture == "llama" and tensor.name.endswith(("attn_k.weight", "attn_k.bias")):
            values = unpermute_rows(values, config.kv_heads)
        yield tensor.name, values


def _write_weights(
    folder: Path,
    path: Path,
    reader: "gguf.GGUFReader",
    config: GgufConfig,
    names: dict[str, str],
    dtype: str,
    progress: Progress | None,
) -> None:
    import torch
    from safetensors.torch import save_file

    shards = _plan_shards([(names[t.name], int(t.n_elements) * DTYPE_BYTES[dtype]) for t in reader.tensors])
    waiting = iter(shards)
    current, tensors = next(waiting), {}
    where: dict[str, str] = {}
    for index, (name, values) in enumerate(_tensors(reader, config)):
        tensor = torch.from_numpy(values.copy()).to(getattr(torch, dtype))
        if not bool(torch.isfinite(tensor).all()):
            raise InputError("E_NAN", path, name, "a value that is NaN or infinite", "finite numbers")
        tensors[names[name]] = tensor
        if progress:
            progress(name, index + 1, len(names))
        if len(tensors) < len(current):
            continue
        file = _shard_name(len(set(where.values())), len(shards))
        save_file(tensors, folder / file, metadata={"format": "pt"})
        (folder / file).chmod((folder / "config.json").stat().st_mode)  # save_file leaves it to its owner alone
        where.update(dict.fromkeys(tensors, file))
        current, tensors = next(waiting, []), {}
    if len(shards) > 1:
        index_json = {"metadata": {"total_size": sum(_bytes_of(reader, dtype))}, "weight_map": where}
        write_file(folder / "model.safetensors.index.json", json.dumps(index_json, indent=2) + "\n")


def _bytes_of(reader: "gguf.GGUFReader", dtype: str) -> Iterator[int]:
    return (int(tensor.n_elements) * DTYPE_BYTES[dtype] for tensor in reader.tensors)


def _plan_shards(sizes: list[tuple[str, int]]) -> list[list[str]]:
    """Tensors in order; a file ends before it would grow beyond SHARD_BYTES_MAX."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes:
        if shards[-1] and filled + size > SHARD_BYTES_MAX:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards


def _shard_name(index: int, count: int) -> str:
    return "model.safetensors" if count == 1 else f"model-{index + 1:05d}-of-{count:05d}.safetensors"


def _write_tokenizer(path: Path, folder: Path, config: GgufConfig) -> None:
    """tokenizer.json, its config and the chat template, read out of the GGUF file by transformers."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    except Exception as error:  # whatever a foreign parser raises on a vocabulary that it does not know
        raise InputError(CODE, path, "tokenizer", str(error), "a tokenizer that transformers can read") from error
    if len(tokenizer) > config.vocab:
        raise InputError(CODE, path, "tokenizer", f"{len(tokenizer)} entries", f"at most {config.vocab} embedding rows")
    tokenizer.save_pretrained(folder)
