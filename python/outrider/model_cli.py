"""`outrider import`: get a model."""

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
