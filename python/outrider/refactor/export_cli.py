"""`outrider export`: a refactored model with weights of its own, out of what was kept beside its parent."""

import shutil
from pathlib import Path
from typing import Annotated

import typer

from outrider.refactor.artifact import seal
from outrider.refactor.atomic import atomic_folder, remove
from outrider.refactor.cli import input_errors
from outrider.refactor.errors import InputError
from outrider.refactor.run import CARD_FILES, TOKENIZER_FILES


def export_command(
    artifact: Annotated[Path, typer.Argument(help="A refactored model without weights: adapter, masks and router.")],
    parent: Annotated[Path, typer.Option("--parent", "--model", help="The model folder beside which it was tuned.")],
    out: Annotated[Path, typer.Option(help="The folder to write; it must not exist.")],
    dtype: Annotated[str, typer.Option(help="Of the written weights: bfloat16 or float32.")] = "bfloat16",
    force: Annotated[bool, typer.Option("--force", help="Replace an existing output folder.")] = False,
) -> None:
    """Merges the adapter into the parent's weights and writes a folder like that of `outrider refactor`."""
    with input_errors():
        merge(artifact, parent, out, dtype=dtype, force=force)
    print(out)


def merge(artifact: Path, parent: Path, out: Path, *, dtype: str = "bfloat16", force: bool = False) -> None:
    """Writes `out` from `artifact` and `parent`.

    Raises:
        InputError: E_EXISTS, E_DISK, E_MODEL for an artifact that has weights. ValueError: an error line of the core.
    """
    from outrider import _core

    if (artifact / "config.json").is_file():
        raise InputError("E_MODEL", artifact, "config.json", "weights of its own", "a folder with nothing to merge yet")
    needed = 2 * sum(path.stat().st_size for path in parent.glob("*.safetensors"))
    with atomic_folder(out, force=force, needed_bytes=needed) as folder:
        merged = folder / "merged"
        _core.merge_artifact(str(artifact), str(parent), str(merged), dtype)
        for path in sorted(merged.iterdir()):
            path.rename(folder / path.name)
        remove(merged)
        for name in TOKENIZER_FILES:
            if (parent / name).is_file():
                shutil.copyfile(parent / name, folder / name)
        seal(folder)
        for name in CARD_FILES:
            if (artifact / name).is_file():
                shutil.copyfile(artifact / name, folder / name)
