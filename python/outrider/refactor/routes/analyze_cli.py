"""`outrider analyze`: how redundant the expert choices of neighbouring layers are."""

import io
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from outrider.refactor.atomic import write_file
from outrider.refactor.cli import input_errors
from outrider.refactor.errors import InputError


def analyze_command(
    path: Annotated[
        Path, typer.Argument(metavar="RUN_OR_TRACE", help="A refactored model, a run of the core, or a route trace.")
    ],
    row: Annotated[str | None, typer.Option(help="Row of the run; layerwise if it was run, else ours.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of JSON and picture; that of the trace by default.")] = None,
) -> None:
    """Transition matrices and mutual information between neighbouring layers, and run lengths of each layer.

    Writes NAME.analysis.json and NAME.analysis.png, and prints a table. Layers differ only where each has a router:
    `outrider refactor --rows ...,layerwise,ours` makes such a run.
    """
    from outrider.refactor.routes.analysis import analyse
    from outrider.refactor.routes.picture import draw
    from outrider.refactor.routes.trace import find_trace, load_trace

    with input_errors():
        trace = load_trace(find_trace(path, row))
        found = analyse(trace)
        folder = out or trace.path.parent
        if not folder.is_dir():
            raise InputError("E_USAGE", folder, "--out", "no such folder", "an existing folder")
        picture = io.BytesIO()
        draw(found, f"{trace.path.stem}: {found['tokens']:,} tokens, {found['experts']} experts", picture)
        written = [folder / f"{trace.path.stem}.analysis.{ending}" for ending in ("json", "png")]
        write_file(written[0], json.dumps(found) + "\n")
        write_file(written[1], picture.getvalue())
    _print_table(found)
    for file in written:
        print(file)


def _print_table(found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{found['tokens']:,} tokens of {found['split']}, {found['experts']} experts")
    for name in ("layer", "stays", "mean run", "run p90", "entropy", "MI to next, nats", "of its entropy", "same id"):
        table.add_column(name, justify="right")
    pairs = {pair["layer"]: pair for pair in found["pairs"]}
    for layer, use in enumerate(found["layers"]):
        cells = [
            str(layer) if found["per_layer"] else "all",
            f"{use['stay_rate']:.1%}",
            f"{use['run_mean']:.2f}",
            str(use["run_p90"]),
            f"{use['entropy']:.3f}",
        ]
        table.add_row(*cells, *_pair_cells(pairs.get(layer)))
    Console(width=110).print(table)
    if found["mean"]["share"] is not None:
        print(f"mean over pairs: {found['mean']['nats']:.4f} nats, {found['mean']['share']:.1%} of the entropy")
    print(f"bias correction: {found['correction']}")


def _pair_cells(pair: dict[str, Any] | None) -> list[str]:
    if pair is None:
        return ["", "", ""]
    share = "" if pair["share"] is None else f"{pair['share']:.1%}"
    return [f"{pair['nats']:.4f}", share, f"{pair['same']:.1%}"]
