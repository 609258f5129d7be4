"""A Hugging Face folder of a llama model as a GGUF file, in F32 or Q8_0, for llama.cpp to run beside."""

import json
from pathlib import Path

import gguf
import numpy as np
import torch
from outrider.model_import.gguf_import import GLOBAL_NAMES, LAYER_NAMES
from safetensors.torch import load_file

GLOBAL_TO_GGUF = {ours: theirs for theirs, ours in GLOBAL_NAMES.items()}
LAYER_TO_GGUF = {ours: theirs for theirs, ours in LAYER_NAMES.items()}
TYPES = {"f32": gguf.GGMLQuantizationType.F32, "q8_0": gguf.GGMLQuantizationType.Q8_0}


def interleave_rows(rows, heads):
    """[heads * head_dim, ...]: the halves of each head become pairs, the order of llama-architecture files."""
    return rows.reshape(heads, 2, -1, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def name_in_gguf(name):
    """model.layers.3.mlp.up_proj.weight -> blk.3.ffn_up.weight"""
    if name in GLOBAL_TO_GGUF:
        return GLOBAL_TO_GGUF[name]
    stem, kind = name.rsplit(".", 1)
    _, _, layer, part = stem.split(".", 3)
    return f"blk.{layer}.{LAYER_TO_GGUF[part]}.{kind}"


def add_vocabulary(writer, folder, size):
    """Tokens and merges of a byte-level BPE tokenizer."""
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    special = {token["id"]: token["content"] for token in content["added_tokens"]}
    by_id = {number: token for token, number in content["model"]["vocab"].items()} | special
    merges = content["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list([by_id.get(number, f"[unused{number}]") for number in range(size)])
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    writer.add_token_types([control if number in special else normal for number in range(size)])
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])


def write_llama_file(folder, path, form):
    """`form`: f32 or q8_0; matrices in it, vectors in F32. The model must be a llama without biases."""
    folder = Path(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if config["model_type"] != "llama" or config.get("attention_bias"):
        raise ValueError(f"{folder}: expected a llama model without biases")
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_rope_freq_base(
        config["rope_theta"] if "rope_theta" in config else config["rope_parameters"]["rope_theta"]
    )
    writer.add_rope_dimension_count(config.get("head_dim") or config["hidden_size"] // heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    add_vocabulary(writer, folder, config["vocab_size"])
    for shard in sorted(folder.glob("*.safetensors")):
        for name, tensor in load_file(shard).items():
            if name.startswith("lm_head") and config.get("tie_word_embeddings"):
                continue
            values = tensor.to(torch.float32).numpy()
            if ".q_proj." in name or ".k_proj." in name:
                values = np.ascontiguousarray(interleave_rows(values, heads if ".q_proj." in name else kv_heads))
            kind = TYPES[form] if values.ndim == 2 else TYPES["f32"]
            writer.add_tensor(name_in_gguf(name), gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
