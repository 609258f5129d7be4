"""Small GGUF files for tests, written by the `gguf` package from Hugging Face models."""

import functools
from pathlib import Path

import gguf
import numpy as np
import tokenizers
import transformers

LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
GLOBAL_NAMES = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}


@functools.cache
def byte_tokenizer(vocab: int = 288) -> tokenizers.Tokenizer:
    """A byte-level BPE tokenizer of exactly `vocab` entries, id 0 special."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([Path(__file__).read_text(encoding="utf-8")], trainer)
    assert tokenizer.get_vocab_size() == vocab, tokenizer.get_vocab_size()
    return tokenizer


def interleave_rows(rows: np.ndarray, heads: int) -> np.ndarray:
    """[heads * head_dim, ...]: first and second halves of each head -> pairs, the order of llama-architecture files."""
    return rows.reshape(heads, 2, -1, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def write_gguf(
    path: Path, model: transformers.PreTrainedModel, *, kind: str = "F32", overrides: dict[str, object] | None = None
) -> None:
    """`model` as the public converters write it; matrices in quantisation `kind`, vectors in float32."""
    config = model.config
    arch = config.model_type
    writer = gguf.GGUFWriter(path, arch)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    for name, value in (overrides or {}).items():
        (writer.add_uint32 if isinstance(value, int) else writer.add_string)(name, value)
    _add_tokenizer(writer, byte_tokenizer(config.vocab_size))
    quantisation = gguf.GGMLQuantizationType[kind]
    for name, parameter in model.named_parameters():
        values = parameter.detach().numpy()
        if arch == "llama" and ".q_proj" in name:
            values = interleave_rows(values, config.num_attention_heads)
        if arch == "llama" and ".k_proj" in name:
            values = interleave_rows(values, config.num_key_value_heads)
        if values.ndim == 2 and kind != "F32":
            writer.add_tensor(gguf_name(name), gguf.quantize(values, quantisation), raw_dtype=quantisation)
        else:
            writer.add_tensor(gguf_name(name), np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gguf_name(name: str) -> str:
    if name in GLOBAL_NAMES:
        return GLOBAL_NAMES[name]
    if name == "lm_head.weight":
        return "output.weight"
    _, _, layer, *middle, last = name.split(".")
    return f"blk.{layer}.{LAYER_NAMES['.'.join(middle)]}.{last}"


def _add_tokenizer(writer: gguf.GGUFWriter, tokenizer: tokenizers.Tokenizer) -> None:
    import json

    described = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(described["vocab"], key=described["vocab"].get)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL] + [gguf.TokenType.NORMAL] * (len(tokens) - 1))
    writer.add_token_merges([" ".join(merge) for merge in described["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
