"""The tokenizer of a model folder and its chat template, without transformers: that would cost seconds at the start."""

import datetime
import json
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from outrider.refactor.errors import InputError
from outrider.serve.errors import ApiError

_BEFORE = 8  # tokens, enough to hold a whole character
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # of vocabularies of SentencePiece


class ServeTokenizer:
    """`tokenizer.json` through the tokenizers library, chat templates through jinja2's sandbox."""

    def __init__(self, folder: Path) -> None:
        from outrider.refactor.tokenizer import load_tokenizer

        loaded = load_tokenizer(folder)
        self.vocab = loaded.vocab
        self.sha256 = loaded.sha256
        self._tokenizer = loaded.tokenizer
        decoder = loaded.tokenizer.decoder
        self._byte_level = decoder is None or b"ByteLevel" in decoder.__getstate__()
        fallback = decoder is not None and b"ByteFallback" in decoder.__getstate__()
        self._bytes = _byte_tokens(loaded.tokenizer) if fallback else {}
        self._anchor = next((found for name in "aei1" if (found := loaded.tokenizer.token_to_id(name)) is not None), 0)
        self._special, source = _template_of(folder)
        self._template = _compile(folder, source) if source else None

    @property
    def has_template(self) -> bool:
        return self._template is not None

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """`special`: with the tokens that the tokenizer puts around a text."""
        return self._tokenizer.encode(text, add_special_tokens=special).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Byte tokens by themselves: the library gives up a whole run of them, characters included, for half of one."""
        if not self._bytes:
            return self._tokenizer.decode(ids, skip_special_tokens=True)
        text = ""
        for number, (are_bytes, group) in enumerate(groupby(ids, self._bytes.__contains__)):
            if are_bytes:
                text += bytes(map(self._bytes.__getitem__, group)).decode("utf-8", "replace")
            else:
                text += self._decode_inside(list(group)) if number else self._tokenizer.decode(list(group))
        return text

    def _decode_inside(self, ids: list[int]) -> str:
        """Of ids that do not stand at the beginning, where a space would be dropped."""
        inside, anchor = self._tokenizer.decode([self._anchor, *ids]), self._tokenizer.decode([self._anchor])
        return inside[len(anchor) :]

    def before_text(self, prompt: Sequence[int]) -> Sequence[int]:
        """What the text behind `prompt` has to be decoded with: other than byte-level decoders drop a first space."""
        return () if self._byte_level else prompt[-_BEFORE:]

    def token_text(self, token: int) -> str:
        """The text of one token, special ones by their name; half a character as U+FFFD."""
        name = self._tokenizer.id_to_token(token) or ""
        if not self._byte_level and _SPACE in name:
            return name.replace(_SPACE, " ")
        return self._tokenizer.decode([token], skip_special_tokens=False)

    def token_bytes(self, token: int) -> list[int] | None:
        """The bytes of a token; None where its name does not say them."""
        name = self._tokenizer.id_to_token(token) or ""
        if self._byte_level and all(character in _BYTE_OF for character in name):
            return [_BYTE_OF[character] for character in name]
        if token in self._bytes:
            return [self._bytes[token]]
        text = self.token_text(token)
        return None if "\N{REPLACEMENT CHARACTER}" in text else list(text.encode())

    def chat_text(self, messages: list[dict[str, str]]) -> str:
        """The conversation up to where the answer begins.

        Raises:
            ApiError: 400 when the model has no chat template, or the template refuses these messages.
        """
        import jinja2

        if self._template is None:
            message = "This model has no chat template; use /v1/completions."
            raise ApiError(400, message, code="no_chat_template", param="messages")
        try:
            return self._template.render(messages=messages, add_generation_prompt=True, **self._special)
        except (jinja2.TemplateError, TypeError, ValueError, KeyError, OverflowError) as error:
            message = f"The chat template refuses the messages: {str(error)[:200]}"
            raise ApiError(400, message, code="invalid_messages", param="messages") from None

    def chat_ids(self, messages: list[dict[str, str]]) -> list[int]:
        """Ids of `chat_text`; the template has written the special tokens itself."""
        return self.encode(self.chat_text(messages), special=False)


def _byte_tokens(tokenizer: Any) -> dict[int, int]:
    """The byte of each token that stands for one."""
    found = {tokenizer.token_to_id(f"<0x{byte:02X}>"): byte for byte in range(256)}
    return {token: byte for token, byte in found.items() if token is not None}


def _template_of(folder: Path) -> tuple[dict[str, Any], str | None]:
    """Special tokens by name, and the template's source."""
    path = folder / "tokenizer_config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise InputError("E_TOKENIZER", path, "tokenizer_config", str(error)[:120], "JSON") from None
    names = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")
    special = {name: _token_text(config[name]) for name in names if config.get(name)}
    file = folder / "chat_template.jinja"
    if file.is_file():
        return special, file.read_text(encoding="utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):
        template = {row["name"]: row["template"] for row in template}.get("default")
    return special, template


def _token_text(value: Any) -> str:
    return value["content"] if isinstance(value, dict) else value


def _compile(folder: Path, source: str) -> Any:
    import jinja2
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    try:
        return environment.from_string(source)
    except jinja2.TemplateError as error:
        raise InputError("E_TOKENIZER", folder, "chat template", str(error)[:160], "a Jinja template") from None


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **rest: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **rest)


def _raise(message: str) -> None:
    import jinja2

    raise jinja2.TemplateError(message)


def _byte_alphabet() -> dict[str, int]:
    """The characters that byte-level vocabularies write for bytes: printable ones stand for themselves."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}


_BYTE_OF = _byte_alphabet()
