"""`outrider data`: prepares what refactoring and evaluation read."""

import errno
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from outrider.refactor import domains, prepare, stdlib_corpus
from outrider.refactor.errors import InputError

_SAY_S = 15.0  # between two lines of progress

data_app = typer.Typer(help="Prepare text and task sets for refactoring and evaluation.", no_args_is_help=True)

Force = Annotated[bool, typer.Option("--force", help="Replace an existing output folder.")]
Out = Annotated[Path, typer.Option(help="The folder to write; it must not exist.")]


@contextmanager
def input_errors() -> Iterator[None]:
    """Bad input ends the program with its one line on standard error and exit code 2.

    Error lines of the native core come as ValueError and lack only the program's name. Files that the operating system
    refuses are bad input as well: a full disk may come at any write.
    """
    try:
        yield
    except InputError as error:
        line = str(error)
    except ValueError as error:
        if not str(error).startswith("error E_"):
            raise
        line = f"outrider: {error}"
    except OSError as error:
        line = str(_of_disk(error))
    else:
        return
    print(line, file=sys.stderr)
    raise typer.Exit(InputError.exit_code)


def _of_disk(error: OSError) -> InputError:
    found = error.strerror or str(error) or type(error).__name__
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return InputError("E_DISK", error.filename or "output", "free space", found, "a disk with room")
    return InputError("E_FILE", error.filename or "a file", "access", found, "a file that can be read and written")


@data_app.command("prepare")
def prepare_command(
    tokenizer: Annotated[Path, typer.Option(help="The model's folder, or its tokenizer.json.")],
    out: Out,
    data: Annotated[Path | None, typer.Option(help="Folder of .txt and .jsonl files, also .xz, .bz2, .gz.")] = None,
    table: Annotated[
        str | None,
        typer.Option("--domains", help="Domain table, .toml or .tsv; `default` names the one that comes along."),
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Tokens per domain at most.", min=1)] = None,
    unseen_tokens: Annotated[
        int, typer.Option(help="Tokens per unseen domain at most.", min=1)
    ] = prepare.UNSEEN_TOKENS,
    calib_tokens: Annotated[
        int, typer.Option(help="Train tokens that each domain must have.", min=1)
    ] = prepare.CALIBRATION_TOKENS,
    separator: Annotated[str | None, typer.Option(help="Token written after each document; default none.")] = None,
    force: Force = False,
) -> None:
    """Tokenises text into train, valid and test files per domain. A subfolder of --data is a domain."""
    from outrider.refactor.tokenizer import load_tokenizer

    with input_errors():
        if data is None and table is None:
            raise InputError("E_USAGE", "outrider data prepare", "input", "neither", "--data FOLDER or --domains TABLE")
        files = domains.from_table(table, data) if table else domains.from_folder(data or Path())
        options = prepare.Options(max_tokens, unseen_tokens, calib_tokens, separator)
        with _token_progress(list(files.all)) as progress:
            summary = prepare.prepare(files, load_tokenizer(tokenizer), out, options, force=force, progress=progress)
    for name, splits in summary["splits"].items():
        counts = ", ".join(f"{split} {row['tokens']}" for split, row in splits.items())
        print(f"{name}: {counts} tokens")


@data_app.command("trim")
def trim_command(
    data: Annotated[Path, typer.Argument(metavar="DIR", help="Output of `outrider data prepare`.")],
    tokens: Annotated[int, typer.Option(help="Train tokens in all; each domain keeps its share.", min=1)],
    out: Out,
    held_out: Annotated[int, typer.Option(help="Tokens of each valid, test and unseen split.", min=1)] = 131_072,
    force: Force = False,
) -> None:
    """Copies the first documents of each domain and split: less text, for a smaller machine."""
    from outrider.refactor.trim import trim

    with input_errors():
        summary = trim(data, out, tokens, held_out, force=force)
    for name, splits in summary["splits"].items():
        counts = ", ".join(f"{split} {row['tokens']}" for split, row in splits.items())
        print(f"{name}: {counts} tokens")


@data_app.command("self")
def self_command(
    parent: Annotated[Path, typer.Argument(metavar="PARENT", help="A Hugging Face model folder.")],
    out: Out,
    tokens: Annotated[str, typer.Option(help="Tokens to keep: a number, also with k or M.")] = "1M",
    prompts: Annotated[Path | None, typer.Option(help="Questions to answer instead: .jsonl, a `text` each.")] = None,
    text_share: Annotated[float, typer.Option(help="Of the tokens, in texts that are no conversation.")] = 0.25,
    name_share: Annotated[float, typer.Option(help="Of all tokens, in texts about names of the others.")] = 0.0,
    turns: Annotated[int, typer.Option(help="Questions and answers of a conversation.")] = 1,
    length: Annotated[int, typer.Option(help="Tokens of a text at most.")] = 512,
    temperature: Annotated[float, typer.Option(help="Of the draws.")] = 1.0,
    answer_temperature: Annotated[float, typer.Option(help="The same in answers and in texts about names.")] = 0.7,
    top_k: Annotated[int, typer.Option(help="Draw from the k most likely only; 0: from all.")] = 256,
    top_p: Annotated[float, typer.Option(help="Draw from the most likely that reach p together.")] = 0.95,
    seed: Annotated[int, typer.Option(help="Equal seeds give equal texts.", min=0)] = 0,
    rows: Annotated[int, typer.Option(help="Texts at once; does not change them.")] = 64,
    dtype: Annotated[str, typer.Option(help="To compute in: float32, bfloat16 or float16.")] = "float32",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    force: Force = False,
) -> None:
    """Writes a data folder of texts that the model itself makes up: what to tune on when its data is gone."""
    from outrider.refactor import self_text

    with input_errors():
        options = self_text.SelfOptions(
            tokens=self_text.token_count("outrider data self", tokens),
            text_share=text_share,
            name_share=name_share,
            turns=turns,
            length=length,
            temperature=temperature,
            answer_temperature=answer_temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
            prompts=prompts,
            rows=rows,
            device=device,
            dtype=dtype,
        )
        with self_progress(options.tokens) as progress:
            summary = self_text.write_self_text(parent, out, options, force=force, progress=progress)
    for name, row in summary["self"]["texts"].items():
        kept = sum(split["tokens"] for split in summary["splits"][name].values())
        dropped = ", ".join(f"{count} {reason}" for reason, count in row["dropped"].items()) or "none"
        print(f"{name}: {kept} tokens in {row['kept']} of {row['written']} texts; dropped: {dropped}")


@data_app.command("stdlib")
def stdlib_command(
    out: Out,
    vocab: Annotated[
        int | None, typer.Option(help="Also train a tokenizer of that size, OUT/tokenizer.json.", min=256)
    ] = None,
    max_bytes: Annotated[int, typer.Option(help="Bytes per domain at most, about.", min=1)] = 8 << 20,
    force: Force = False,
) -> None:
    """Writes the text of this Python's standard library as three domains: code, docstrings, licences."""
    from outrider.refactor.tokenizer import train_tokenizer

    with input_errors():
        sizes = stdlib_corpus.build(out, force=force, max_bytes=max_bytes)
        for name, size in sizes.items():
            print(f"{name}: {size} bytes")
        if vocab:
            files = sorted(out.rglob("*.txt"))
            texts = (file.read_text(encoding="utf-8")[:4096] for file in files)
            print(f"tokenizer: {train_tokenizer(texts, vocab, out / 'tokenizer.json').vocab} entries")


@data_app.command("tasks")
def tasks_command(
    source: Annotated[Path, typer.Option("--eval", help="Folder of the published task files.")],
    out: Out,
    task: Annotated[list[str] | None, typer.Option(help="Only this task; may be repeated.")] = None,
    shots: Annotated[str, typer.Option(help="`published` (ARC-Challenge 25, HellaSwag 10) or `none`.")] = "published",
    force: Force = False,
) -> None:
    """Writes task sets as canonical JSONL, with task descriptions for lm-evaluation-harness beside them."""
    from outrider.refactor.tasks.prepare_tasks import prepare_tasks
    from outrider.refactor.tasks.sources import SOURCES

    with input_errors():
        if shots not in ("published", "none"):
            raise InputError("E_USAGE", "outrider data tasks", "--shots", repr(shots), "published or none")
        for name, count in prepare_tasks(source, out, task or tuple(SOURCES), shots=shots, force=force).items():
            print(f"{name}: {count} items")


@contextmanager
def self_progress(total: int) -> Iterator[Callable[[str, int], None]]:
    """A bar on standard error with tokens kept and tokens/s; a line now and then when that is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[rate]}"), TimeRemainingColumn())
    kept: dict[str, int] = {}
    started, said = time.monotonic(), time.monotonic()
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("own text", total=total, rate="")

        def report(name: str, tokens: int) -> None:
            nonlocal said
            kept[name] = tokens
            done, now = sum(kept.values()), time.monotonic()
            rate = f"{done:,} tokens, {done / max(now - started, 1e-9):,.0f}/s"
            bar.update(task, description=name, completed=done, rate=rate)
            if not console.is_terminal and (now - said > _SAY_S or done >= total):
                print(f"{name}: {rate}", file=sys.stderr)
                said = now

        yield report


@contextmanager
def _token_progress(names: list[str]) -> Iterator[Callable[[str, int], None]]:
    """A bar on standard error with tokens, rate and domains done; nothing when that is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
    done, total, names_seen = 0, 0, set()
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("domains", total=len(names), rate="")

        def report(name: str, tokens: int) -> None:
            nonlocal done, total
            total += tokens
            names_seen.add(name)
            done = len(names_seen) - 1
            elapsed_s = bar.tasks[0].elapsed or 0
            rate = f"{total:,} tokens" + (f", {total / elapsed_s:,.0f}/s" if elapsed_s > 0 else "")
            bar.update(task, description=name, completed=done, rate=rate)

        yield report
