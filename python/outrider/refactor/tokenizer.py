"""The tokenizer of a model folder, checked against the model's vocabulary."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from outrider.refactor.errors import InputError

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclass(frozen=True)
class ModelTokenizer:
    """`vocab` is the model's number of embedding rows where config.json says it, else the tokenizer's own size."""

    tokenizer: "Tokenizer"
    path: Path
    vocab: int
    sha256: str

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Ids of each text, without special tokens around it."""
        return [encoding.ids for encoding in self.tokenizer.encode_batch(texts, add_special_tokens=False)]

    def id_of(self, token: str) -> int:
        """Raises InputError E_VOCAB for a token that the tokenizer does not have."""
        number = self.tokenizer.token_to_id(token)
        if number is None:
            raise InputError("E_VOCAB", self.path, repr(token), "no such token", "a token of the vocabulary")
        return number


def load_tokenizer(model: Path) -> ModelTokenizer:
    """Reads `tokenizer.json` of a model folder, or that file itself, and `config.json` beside it where there is one.

    Raises:
        InputError: E_TOKENIZER when the file is missing or malformed; E_VOCAB when an id lies outside the vocabulary.
    """
    from tokenizers import Tokenizer

    path = Path(model) if Path(model).is_file() else Path(model) / "tokenizer.json"
    try:
        text = path.read_bytes()
    except OSError as error:
        raise InputError(
            "E_TOKENIZER", path, "tokenizer", str(error), "tokenizer.json in the model's folder"
        ) from error
    try:
        tokenizer = Tokenizer.from_str(text.decode("utf-8"))
    except Exception as error:  # the library raises plain Exception
        raise InputError("E_TOKENIZER", path, "tokenizer", str(error)[:120], "a tokenizers file") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    largest = max(tokenizer.get_vocab(with_added_tokens=True).values())
    vocab = _configured_vocab(path.with_name("config.json")) or largest + 1
    if largest >= vocab:
        raise InputError(
            "E_VOCAB", path, "vocabulary", f"id {largest}", f"ids below {vocab}, the rows of the embedding"
        )
    return ModelTokenizer(tokenizer, path, vocab, hashlib.sha256(text).hexdigest())


def train_tokenizer(texts: Iterable[str], vocab: int, path: Path) -> ModelTokenizer:
    """Trains a byte-level BPE tokenizer of exactly `vocab` entries, for models that are made from nothing.

    Raises:
        InputError: E_VOCAB when `vocab` is below the 256 bytes or the text has too few pairs to fill it.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() != vocab:
        raise InputError("E_VOCAB", path, "vocabulary", f"{tokenizer.get_vocab_size()} entries", f"{vocab}")
    path.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path))
    return load_tokenizer(path)


def _configured_vocab(config: Path) -> int | None:
    if not config.exists():
        return None
    try:
        value = json.loads(config.read_text(encoding="utf-8"))["vocab_size"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError("E_CONFIG", config, "vocab_size", str(error) or "nothing", "an integer") from error
    if not isinstance(value, int) or value <= 0:
        raise InputError("E_CONFIG", config, "vocab_size", repr(value), "a positive integer")
    return value
