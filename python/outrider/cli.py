"""The console program ``outrider``."""

import importlib.metadata
import sys
from pathlib import Path
from typing import Annotated

import typer

from outrider import _runtime, api, generate_cli, graph_export, model_cli, script_runner, timeline
from outrider.demo.__main__ import application as demo_app
from outrider.explain import explain, load_rows, print_rows, save_rows
from outrider.refactor.cli import data_app
from outrider.refactor.eval_cli import card_command, eval_app
from outrider.refactor.export_cli import export_command
from outrider.refactor.prompts_cli import prompts_command
from outrider.refactor.refactor_cli import refactor_command
from outrider.refactor.routes.analyze_cli import analyze_command
from outrider.serve.cli import serve_command
from outrider.serve.replay.cli import bench_app

app = typer.Typer(
    name="outrider",
    help="Decide ahead on the host, execute at full speed on the device.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
coexec_app = typer.Typer(help="Co-execute a PyTorch program; explain what was covered.", no_args_is_help=True)
app.add_typer(coexec_app, name="coexec")
app.add_typer(data_app, name="data")
eval_app.command("prompts")(prompts_command)
app.add_typer(eval_app, name="eval")
app.command("card")(card_command)
app.command("refactor")(refactor_command)
app.command("analyze")(analyze_command)
app.add_typer(demo_app, name="demo")
app.command("import")(model_cli.import_command)
app.command("generate")(generate_cli.generate_command)
app.command("export")(export_command)
app.command("serve")(serve_command)
app.add_typer(bench_app, name="bench")


@coexec_app.command("run", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
def run(
    script: Annotated[str, typer.Argument(help="The training script; it needs no change.")],
    arguments: Annotated[list[str] | None, typer.Argument(metavar="ARGS...", help="Passed on to the script.")] = None,
    report: Annotated[Path | None, typer.Option(help="Write all rows as JSON.")] = None,
    graph: Annotated[Path | None, typer.Option(help="Write the TraceGraph: .svg, .dot, .mmd or .txt.")] = None,
    timeline_path: Annotated[
        Path | None, typer.Option("--timeline", help="Write a timeline for Perfetto, as JSON.")
    ] = None,
    last: Annotated[int, typer.Option(help="Steps in the table at the end.", min=1)] = 10,
    quiet: Annotated[bool, typer.Option("--quiet", help="No table at the end.")] = False,
) -> None:
    """Runs SCRIPT as `python SCRIPT ARGS...` would, with each optimizer step as the end of a co-executed step.

    The table at the end goes to standard error. Options of outrider come before SCRIPT.
    """
    _require_core()
    exit_code = script_runner.run_script(script, arguments or [])
    api.flush()
    if not quiet:
        _print_outcome(last)
    if report:
        save_rows(report, api.report())
    if graph:
        graph_export.save_graph(graph)
    if timeline_path:
        timeline.save_timeline(timeline_path)
    sys.exit(exit_code)


@coexec_app.command("explain")
def explain_file(
    path: Annotated[Path, typer.Argument(metavar="FILE.json", help="Written by `outrider coexec run --report`.")],
    last: Annotated[int | None, typer.Option(help="Only the last steps.", min=1)] = None,
) -> None:
    """Prints the why table of a saved report."""
    try:
        rows = load_rows(path)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        raise typer.Exit(1) from None
    print_rows(rows if last is None else rows[-last:])


@app.command()
def version() -> None:
    """Prints the versions of Outrider, Python, torch and the native core."""
    for name, value in _versions().items():
        print(f"{name}: {value}")


def main() -> None:
    """Entry point of the console program."""
    app(prog_name="outrider")


def _require_core() -> None:
    """Says so before a long script runs, not after."""
    try:
        if _runtime.enabled():
            _runtime.core()
    except ImportError as error:
        print(f"The native core cannot be loaded: {error}", file=sys.stderr)
        raise typer.Exit(1) from None


def _print_outcome(last: int) -> None:
    rows = explain(last, file=sys.stderr)
    if not rows and _runtime.enabled():
        print(
            "The script called no optimizer.step() more than once, so no step was found. Mark steps yourself "
            "with outrider.coexec or `with outrider.step():`.",
            file=sys.stderr,
        )


def _versions() -> dict[str, str]:
    versions = {"outrider": _installed_version("outrider"), "python": sys.version.split()[0]}
    versions["torch"] = _installed_version("torch")
    if not _runtime.enabled():
        return {**versions, "core": "switched off (OUTRIDER=0)"}
    try:
        core = _runtime.core()
    except ImportError as error:
        return {**versions, "core": f"cannot be loaded ({error})"}
    return {**versions, **{f"core {key}": str(value) for key, value in core.version().items()}}


def _installed_version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed (running from the source tree)"
