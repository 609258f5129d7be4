"""A model of a few hundred thousand parameters with random weights, and text that every machine has: enough to see each
stage of a refactoring work in a minute, too little for its figures to mean anything."""

import json
from pathlib import Path

from outrider.refactor import stdlib_corpus
from outrider.refactor.atomic import atomic_folder, write_file
from outrider.refactor.tokenizer import train_tokenizer

VOCAB = 512
# The shape of the "stories" models: 5 layers, 8 query and 4 key heads.
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 172,
    "num_hidden_layers": 5,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": VOCAB,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
    "torch_dtype": "float32",
}


def make(folder: Path, *, seed: int = 0, max_bytes: int = 1 << 19, force: bool = False) -> tuple[Path, Path]:
    """Writes FOLDER/model and FOLDER/text (domains code, docstrings, licences); returns the two."""
    import torch
    import transformers

    with atomic_folder(folder, force=force) as partial:
        stdlib_corpus.build(partial / "text", max_bytes=max_bytes)
        files = sorted((partial / "text").rglob("*.txt"))
        texts = (file.read_text(encoding="utf-8")[:4096] for file in files)
        train_tokenizer(texts, VOCAB, partial / "model" / "tokenizer.json")
        torch.manual_seed(seed)
        config = transformers.AutoConfig.for_model(**CONFIG)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        model.save_pretrained(partial / "model")
        write_file(partial / "model" / "tokenizer_config.json", json.dumps(_TOKENIZER_CONFIG) + "\n")
    return folder / "model", folder / "text"


_TOKENIZER_CONFIG = {"tokenizer_class": "PreTrainedTokenizerFast"}
