"""`outrider generate`: let a model write, dense or refactored."""

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from outrider.refactor.artifact import HEADER
from outrider.refactor.cli import input_errors
from outrider.refactor.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def generate_command(
    model: Annotated[Path, typer.Argument(help="A model folder, dense or refactored.")],
    prompt: Annotated[str, typer.Option(help="The question, or the text to continue; `-` reads standard input.")] = "-",
    parent: Annotated[
        Path | None, typer.Option("--parent", "--model", help="The parent of a folder without weights.")
    ] = None,
    compare: Annotated[Path | None, typer.Option(help="Also let this model folder answer, first.")] = None,
    chat: Annotated[
        bool | None, typer.Option("--chat/--plain", help="Ask through the chat template, or continue the text itself.")
    ] = None,
    new_tokens: Annotated[int, typer.Option(help="Tokens to write at most.", min=1)] = 128,
    temperature: Annotated[float, typer.Option(help="0: always the most likely token.", min=0)] = 0.0,
    top_k: Annotated[int, typer.Option(help="Draw from the k most likely only; 0: from all.", min=0)] = 0,
    top_p: Annotated[float, typer.Option(help="Draw from the most likely that reach p together.", min=0, max=1)] = 1.0,
    seed: Annotated[int, typer.Option(help="Equal seeds give equal texts.", min=0)] = 0,
    dtype: Annotated[str, typer.Option(help="To compute in: float32, bfloat16 or float16.")] = "float32",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
) -> None:
    """Prints what a model writes while it writes it; in a refactored model every token runs its expert.

    Asks through the chat template where there is one.
    """
    with input_errors():
        check_device("outrider generate", device)
        tokenizer = load_text_tokenizer(model, parent)
        writers = [(str(model), open_model(model, parent, dtype, device))]
        if compare:
            writers.insert(0, (str(compare), open_model(compare, None, dtype, device)))
        for folder, loaded in writers:
            check_vocabulary(folder, loaded, tokenizer)
        text = sys.stdin.read() if prompt == "-" else prompt
        ids = prompt_ids(tokenizer, text, chat=bool(tokenizer.chat_template) if chat is None else chat)
        sampling = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
        for folder, loaded in writers:
            if compare:
                print(f"== {folder}")
            rate = stream_text(loaded, tokenizer, ids, new_tokens, **sampling)
            if compare:
                print(f"-- {rate:.1f} tokens/s")


def open_model(folder: Path, parent: Path | None, dtype: str, device: str) -> Any:
    """The core's model; a refactored one with its experts on."""
    from outrider import _core

    if (folder / HEADER).is_file():
        return _core.Model.load_routed(str(folder), str(parent or ""), dtype, device)
    if parent is not None:
        raise InputError("E_MODEL", folder, HEADER, "no such file", "a refactored model, as --parent is given")
    return _core.Model.load(str(folder), dtype, device)


def check_vocabulary(folder: Path | str, loaded: Any, tokenizer: "PreTrainedTokenizerBase") -> None:
    """Raises InputError E_VOCAB for a tokenizer with more entries than the model has rows."""
    if len(tokenizer) > loaded.vocab:
        expected = f"at most the {loaded.vocab} rows of the embedding"
        raise InputError("E_VOCAB", folder, "tokenizer", f"{len(tokenizer)} entries", expected)


def stream_text(
    loaded: Any, tokenizer: "PreTrainedTokenizerBase", ids: list[int], new_tokens: int, **sampling: Any
) -> float:
    """Prints what follows `ids` as it is made; returns tokens/s, the reading of `ids` included."""
    writer = TextStream(tokenizer)
    started = time.monotonic()
    loaded.generate(ids, writer.add, new_tokens, loaded.end_ids, **sampling)
    seconds = time.monotonic() - started
    writer.finish()
    return len(writer.ids) / max(seconds, 1e-9)


class TextStream:
    """Prints tokens as text; what may still be half a character waits for the next token."""

    def __init__(self, tokenizer) -> None:
        self.tokenizer, self.ids, self.printed = tokenizer, [], ""

    def add(self, token: int) -> None:
        self.ids.append(token)
        text = self._text()
        if not text.endswith("\N{REPLACEMENT CHARACTER}"):
            self._print(text)

    def finish(self) -> None:
        self._print(self._text())
        print()

    def _text(self) -> str:
        return self.tokenizer.decode(self.ids, skip_special_tokens=True)

    def _print(self, text: str) -> None:
        print(text[len(self.printed) :], end="", flush=True)
        self.printed = text


def check_device(command: str, device: str) -> None:
    """Raises InputError E_USAGE for a device that torch does not see."""
    import torch

    if device != "cpu" and not (device.startswith("cuda") and torch.cuda.is_available()):
        expected = "cpu, or cuda" if torch.cuda.is_available() else "cpu (torch sees no CUDA device)"
        raise InputError("E_USAGE", command, "--device", repr(device), expected)


def load_text_tokenizer(folder: Path, parent: Path | None = None) -> "PreTrainedTokenizerBase":
    """The tokenizer of a model folder, or of its parent where the folder has none.

    Raises:
        InputError: E_READ when neither has one, E_USAGE for a folder without weights without its parent.
    """
    from transformers import AutoTokenizer

    from outrider.refactor.artifact import check_parent

    check_parent(folder, parent)
    own = (folder / "tokenizer.json").is_file() or parent is None
    place = folder if own else parent
    if not (place / "tokenizer.json").is_file():
        raise InputError("E_READ", place, "tokenizer.json", "no such file", "the tokenizer of the model")
    return AutoTokenizer.from_pretrained(place)


def prompt_ids(tokenizer: "PreTrainedTokenizerBase", text: str, *, chat: bool) -> list[int]:
    """Ids of a text, or of a question in the chat template up to where the answer begins."""
    if not chat:
        return tokenizer(text).input_ids
    message = [{"role": "user", "content": text}]
    return tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=False)
