"""A tiny random model with a chat template, whose turns end now and then."""

import json
from pathlib import Path

import torch
import transformers
from outrider.refactor.tokenizer import load_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

VOCAB = 300
SPECIAL = ["<|text|>", "<|begin|>", "<|end|>"]
TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "<|begin|>system\nBe brief<|end|>\n{% endif %}"
    "{{ '<|begin|>' + message['role'] + '\n' + message['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|begin|>assistant\n' }}{% endif %}"
)


def make_tokenizer(folder: Path, template: str | None = TEMPLATE) -> None:
    """Special tokens have the ids 0 to 2."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB, initial_alphabet=alphabet, special_tokens=SPECIAL, show_progress=False
    )
    text = "system user assistant be brief what is the capital of this and that and the other thing in other words "
    tokenizer.train_from_iterator([text * 20, "".join(chr(c) for c in range(32, 400))], trainer)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|begin|>", "eos_token": "<|end|>"}
    config |= {"unk_token": "<|text|>"} | ({"chat_template": template} if template else {})
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    assert load_tokenizer(folder).vocab <= VOCAB


def make_chat_model(folder: Path, template: str | None = TEMPLATE, *, width: int = 48, heads: int = 6) -> Path:
    """Writes model and tokenizer; float32."""
    make_tokenizer(folder, template)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=3,
        num_attention_heads=heads,
        num_key_value_heads=2,
        vocab_size=VOCAB,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.3 if parameter.dim() == 1 else 0.2))
        model.lm_head.weight[2] *= 2.5  # likely now and then
    model.save_pretrained(folder)
    return folder
