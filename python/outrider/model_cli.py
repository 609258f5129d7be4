"""`outrider import` and `outrider generate`: get a model, and let it write."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from outrider.refactor.cli import input_errors
from outrider.refactor.errors import InputError

SMOLLM2 = "smollm2-135m"


def import_command(
    model: Annotated[str, typer.Argument(help=f"A GGUF file, or {SMOLLM2} to fetch that model.")],
    out: Annotated[Path, typer.Argument(help="The folder to write; it must not exist.")],
    dtype: Annotated[str, typer.Option(help="Of the written weights: bfloat16 or float32.")] = "bfloat16",
    cache: Annotated[Path | None, typer.Option(help="Where fetched files are kept; else OUTRIDER_CACHE.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing output folder.")] = False,
) -> None:
    """Writes a GGUF model as a Hugging Face folder: float weights, config, tokenizer."""
    from outrider.model_import import fetch_smollm2, import_gguf

    with input_errors():
        if out.exists() and not force:
            raise InputError("E_EXISTS", out, "output", "an existing path", "none, or --force to replace it")
        path = fetch_smollm2(cache) if model == SMOLLM2 else Path(model)
        with _TensorBar() as bar:
            config = import_gguf(path, out, dtype=dtype, force=force, progress=bar.report)
    print(f"{out}: {config.architecture}, {config.layers} layers, {config.vocab} tokens, {dtype}")


def generate_command(
    model: Annotated[Path, typer.Argument(help="A Hugging Face model folder.")],
    prompt: Annotated[str, typer.Option(help="The text to continue; `-` reads standard input.")] = "-",
    chat: Annotated[bool, typer.Option("--chat", help="Wrap the prompt into the model's chat template.")] = False,
    new_tokens: Annotated[int, typer.Option(help="Tokens to write at most.", min=1)] = 128,
    temperature: Annotated[float, typer.Option(help="0: always the most likely token.", min=0)] = 0.0,
    top_k: Annotated[int, typer.Option(help="Draw from the k most likely only; 0: from all.", min=0)] = 0,
    top_p: Annotated[float, typer.Option(help="Draw from the most likely that reach p together.", min=0, max=1)] = 1.0,
    seed: Annotated[int, typer.Option(help="Equal seeds give equal texts.", min=0)] = 0,
    dtype: Annotated[str, typer.Option(help="To compute in: float32, bfloat16 or float16.")] = "float32",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
) -> None:
    """Continues a text with a dense model, printed as it is made."""
    with input_errors():
        _check_device(device)
        tokenizer = _load_tokenizer(model)
        from outrider import _core

        loaded = _core.Model.load(str(model), dtype, device)
        if len(tokenizer) > loaded.vocab:
            expected = f"at most the {loaded.vocab} rows of the embedding"
            raise InputError("E_VOCAB", model, "tokenizer", f"{len(tokenizer)} entries", expected)
        text = sys.stdin.read() if prompt == "-" else prompt
        ids = _prompt_ids(tokenizer, text, chat=chat)
        writer = TextStream(tokenizer)
        sampling = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
        loaded.generate(ids, writer.add, new_tokens, loaded.end_ids, **sampling)
    writer.finish()


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


def _check_device(device: str) -> None:
    import torch

    if device != "cpu" and not (device.startswith("cuda") and torch.cuda.is_available()):
        expected = "cpu, or cuda" if torch.cuda.is_available() else "cpu (torch sees no CUDA device)"
        raise InputError("E_USAGE", "outrider generate", "--device", repr(device), expected)


def _load_tokenizer(folder: Path):
    from transformers import AutoTokenizer

    if not (folder / "tokenizer.json").is_file():
        raise InputError("E_READ", folder, "tokenizer.json", "no such file", "the tokenizer of the model")
    return AutoTokenizer.from_pretrained(folder)


def _prompt_ids(tokenizer, text: str, *, chat: bool) -> list[int]:
    if not chat:
        return tokenizer(text).input_ids
    message = [{"role": "user", "content": text}]
    return tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=False)


class _TensorBar:
    """A bar on standard error, one step per tensor; nothing when that is no terminal."""

    def __enter__(self) -> "_TensorBar":
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.bar = Progress(*columns, console=console, disable=not console.is_terminal)
        self.bar.start()
        self.task = self.bar.add_task("tensors")
        return self

    def report(self, name: str, done: int, total: int) -> None:
        self.bar.update(self.task, description=name, completed=done, total=total)

    def __exit__(self, *_: object) -> None:
        self.bar.stop()
