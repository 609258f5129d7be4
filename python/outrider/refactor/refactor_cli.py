"""`outrider refactor`: a dense model becomes a Mixture-of-Experts with one router, and a quality card says how good."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from outrider.refactor import run
from outrider.refactor.budgets import BUDGETS, DEFAULT_ROWS, ROWS
from outrider.refactor.cli import input_errors, self_progress
from outrider.refactor.errors import InputError
from outrider.refactor.tasks.chosen import TaskChoice

Deterministic = Annotated[
    bool, typer.Option("--deterministic", help="Equal bits on a GPU as well; on a CPU they always are.")
]
Coexec = Annotated[bool, typer.Option("--coexec", help="Co-execute the steps: the same bits, less launch overhead.")]


def refactor_command(
    model: Annotated[Path, typer.Argument(help="A Hugging Face model folder, or a GGUF file.")],
    out: Annotated[Path, typer.Option(help="The folder to write; it must not exist.")],
    data: Annotated[
        Path | None,
        typer.Option(
            help="Folder of .txt and .jsonl files (a subfolder is a domain), one of `outrider data`, or self:TOKENS."
        ),
    ] = None,
    table: Annotated[str | None, typer.Option("--domains", help="Domain table; `default` is the one included.")] = None,
    preset: Annotated[str, typer.Option(help="outrider, or readme: as published.")] = "outrider",
    budget: Annotated[str, typer.Option(help=" or ".join(BUDGETS))] = "cpu-smoke",
    active: Annotated[float, typer.Option(help="Share of each FFN that a token uses.", min=0.01, max=1.0)] = 0.5,
    rows: Annotated[str, typer.Option(help=f"Models to tune for comparison: of {', '.join(ROWS)}.")] = ",".join(
        DEFAULT_ROWS
    ),
    option: Annotated[list[str] | None, typer.Option(help="Further options of the core, as NAME=VALUE.")] = None,
    tune: Annotated[
        str | None, typer.Option(help="full, or adapter:R: pairs of rank R beside the parent's untouched weights.")
    ] = None,
    deterministic: Deterministic = False,
    coexec: Coexec = False,
    seed: Annotated[int, typer.Option(help="Equal seeds give equal bits on one machine.", min=0)] = 0,
    max_tokens: Annotated[int | None, typer.Option(help="Tokens per domain at most.", min=1)] = None,
    tasks: Annotated[
        str | None,
        typer.Option(help="none, quick (200 items a task) or full; with --task-data quick on the CPU, else full."),
    ] = None,
    task_data: Annotated[Path | None, typer.Option(help="Output of `outrider data tasks`.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what it takes, and write nothing.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing output folder.")] = False,
) -> None:
    """Tunes experts and router on the text, and the rows that they are compared with on the same tokens.

    An interrupted run goes on where it stopped when it is called again with the same options.
    """
    with input_errors():
        _require_text(data, table)
        request = run.Request(
            model=model,
            data=data or Path(),
            out=out,
            table=table,
            preset=preset,
            budget=budget,
            active=active,
            rows=tuple(dict.fromkeys(name.strip() for name in rows.split(",") if name.strip())),
            seed=seed,
            max_tokens=max_tokens,
            changes=_changes(option, {"tune": tune, "deterministic": deterministic, "coexec": coexec}),
            force=force,
        )
        request = replace(request, tasks=_task_choice(request, tasks, task_data))
        if dry_run:
            for name, value in run.estimate(request).items():
                print(f"{name}: {value:,}" if isinstance(value, int) else f"{name}: {value}")
            return
        _run(run.as_folder(request))
    print((out / "quality_card.md").read_text(encoding="utf-8"))


def _run(request: run.Request) -> None:
    if request.own_tokens:
        with self_progress(request.own_tokens) as own_progress:
            run.write_own_text(request, own_progress)
    with step_bar() as progress:
        run.refactor(request, progress, note=lambda line: print(line, file=sys.stderr))


def _require_text(data: Path | None, table: str | None) -> None:
    if data is None and table is None:
        expected = "--data FOLDER of .txt or .jsonl files, or --data self:1M"
        raise InputError("E_USAGE", "outrider refactor", "text", "neither --data nor --domains", expected)


def _task_choice(request: run.Request, tasks: str | None, folder: Path | None) -> TaskChoice:
    """Checked at once, so that a run of hours does not end with a missing file."""
    if tasks is None:
        quick = folder is not None and request.options()["device"] == "cpu"
        tasks = "none" if folder is None else "quick" if quick else "full"
    choice = TaskChoice(tasks, folder)
    choice.items()
    return choice


def _changes(option: list[str] | None, flags: dict[str, Any]) -> tuple[tuple[str, Any], ...]:
    return (*(_change(text) for text in option or []), *((name, value) for name, value in flags.items() if value))


def _change(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise InputError("E_USAGE", "outrider refactor", "--option", repr(text), "NAME=VALUE")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


@contextmanager
def step_bar() -> Iterator[Callable[[str, dict[str, Any]], None]]:
    """A bar on standard error with loss, tokens/s and time left; a line per stage when that is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("")

        def report(row: str, step: dict[str, Any]) -> None:
            text = f"{row}, {step['stage']}: loss {step['loss']:.3f}, {step['tokens_per_s']:,.0f} tokens/s"
            bar.update(task, description=text, completed=step["position"], total=step["positions"])
            if not console.is_terminal and step["step"] + 1 == step["steps"]:
                print(f"{text} ({step['position']} of {step['positions']} steps)", file=sys.stderr)

        yield report
