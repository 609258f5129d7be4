"""Folders of the Llama family by shape alone: what config.json says, and which tensors a layer has.

A shape is {d, ffn, layers, heads, kv, vocab, tied, context}: `tied` False and `context` 8192 tokens where left out.
"""

from typing import Any

CONTEXT = 8192


def config_of(shape: dict[str, Any]) -> dict[str, Any]:
    """config.json of the shape, in bfloat16."""
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": shape["d"],
        "intermediate_size": shape["ffn"], "num_hidden_layers": shape["layers"],
        "num_attention_heads": shape["heads"], "num_key_value_heads": shape["kv"], "vocab_size": shape["vocab"],
        "max_position_embeddings": shape.get("context", CONTEXT), "rms_norm_eps": 1e-5, "rope_theta": 1e5,
        "hidden_act": "silu", "tie_word_embeddings": shape.get("tied", False), "torch_dtype": "bfloat16",
    }  # fmt: skip


def layer_name(layer: int, part: str) -> str:
    return f"model.layers.{layer}.{part}.weight"


def layer_sizes(shape: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Part of a layer -> size of its weight: [out, in] of a matrix, [d] of a norm."""
    d, ffn, kv = shape["d"], shape["ffn"], shape["kv"] * (shape["d"] // shape["heads"])
    return {
        "self_attn.q_proj": (d, d), "self_attn.k_proj": (kv, d), "self_attn.v_proj": (kv, d),
        "self_attn.o_proj": (d, d), "mlp.gate_proj": (ffn, d), "mlp.up_proj": (ffn, d), "mlp.down_proj": (d, ffn),
        "input_layernorm": (d,), "post_attention_layernorm": (d,),
    }  # fmt: skip
