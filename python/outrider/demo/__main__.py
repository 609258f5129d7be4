"""`python -m outrider.demo coexec|refactor|serve`: what Outrider does, on real input, checked while it runs."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from outrider import _runtime

application = typer.Typer(
    add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help="Demonstrations of Outrider."
)


@application.command()
def coexec(
    steps: Annotated[int, typer.Option(min=30, help="Steps per program and side.")] = 200,
    output: Annotated[Path, typer.Option(help="Folder for pictures, timelines and graphs.")] = Path("out"),
) -> None:
    """Trains three programs on real data twice, checks every bit, and shows what ran where."""
    if not _runtime.enabled():
        print("OUTRIDER=0 is set: there is nothing to show.", file=sys.stderr)
        raise typer.Exit(2)
    from outrider.demo.coexec import run

    raise typer.Exit(run(steps, output))


@application.command()
def refactor(
    output: Annotated[Path, typer.Option(help="Folder for the model and its quality card.")] = Path("out"),
) -> None:
    """Turns a small model into a Mixture-of-Experts; shows a real one at 75 % of its FFN channels."""
    if not _runtime.enabled():
        print("OUTRIDER=0 is set: there is nothing to show.", file=sys.stderr)
        raise typer.Exit(2)
    from outrider.demo import real_model
    from outrider.demo.refactor import run

    raise typer.Exit(run(output) or real_model.run(output))


@application.command()
def serve(
    output: Annotated[Path, typer.Option(help="Folder of the model of `refactor`; made where it is missing.")] = Path(
        "out"
    ),
) -> None:
    """Serves a model on this machine, asks it three questions through OpenAI's client, and compares the policies."""
    if not _runtime.enabled():
        print("OUTRIDER=0 is set: there is nothing to show.", file=sys.stderr)
        raise typer.Exit(2)
    from outrider.demo import policies
    from outrider.demo.serve import run

    raise typer.Exit(run(output) or policies.run(output))


if __name__ == "__main__":
    application()
