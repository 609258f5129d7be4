"""`outrider eval` and `outrider card`: figures of a model folder, and the card made from figures."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from outrider.refactor.artifact import HEADER, check_parent
from outrider.refactor.atomic import write_file
from outrider.refactor.cli import input_errors
from outrider.refactor.errors import InputError

if TYPE_CHECKING:
    from outrider.refactor.data_set import DataSet

eval_app = typer.Typer(help="Measure a model: perplexity on prepared text, scores on task sets.", no_args_is_help=True)

Model = Annotated[Path, typer.Argument(help="A HF model folder; with outrider.json in it, tokens run their experts.")]
Parent = Annotated[
    Path | None, typer.Option("--parent", "--model", help="The parent of a refactored model without weights.")
]
Device = Annotated[str, typer.Option(help="cpu or cuda.")]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16 or float16.")]
Out = Annotated[Path | None, typer.Option(help="Write every document's or item's figure as JSON.")]


@eval_app.command("perplexity")
def perplexity_command(
    model: Model,
    data: Annotated[Path, typer.Option(help="Output of `outrider data prepare`.")],
    split: Annotated[str, typer.Option(help="train, valid or test.")] = "test",
    max_tokens: Annotated[int | None, typer.Option(help="Tokens per domain at most.", min=1)] = None,
    unseen: Annotated[bool, typer.Option("--unseen", help="The unseen domains instead.")] = False,
    window: Annotated[int, typer.Option(help="Tokens of context at most.", min=2)] = 1_024,
    parent: Parent = None,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    out: Out = None,
) -> None:
    """Nats per token, bits per byte and perplexity of each domain."""
    from outrider.refactor.data_set import load_data
    from outrider.refactor.evaluate import perplexities
    from outrider.refactor.stats.perplexity import geometric_mean
    from outrider.refactor.tasks.scorers import model_logits

    with input_errors():
        opened = load_data(data)
        names = opened.unseen if unseen else opened.domains
        if not names or any(split not in opened.splits[name] for name in names):
            raise InputError("E_USAGE", data, "split", f"no {split} text", "a split that data.json has")
        loaded = load_model(model, device, dtype, parent)
        _require_same_vocabulary(parent or model, loaded.config.vocab_size, opened)
        losses = perplexities(
            model_logits(loaded), opened, split=split, names=names, window=window, max_tokens=max_tokens
        )
    for name, loss in losses.items():
        bits = f"{loss.bits_per_byte:.4f}" if loss.bits_per_byte else "unknown"
        figures = f"{loss.nats_per_token:.4f} nats/token, {bits} bits/byte, perplexity {loss.perplexity:.2f}"
        print(f"{name}: {figures}, {int(loss.tokens.sum())} tokens")
    print(f"geometric mean of perplexities: {geometric_mean(losses):.2f}")
    if out:
        rows = {name: {key: value.tolist() for key, value in asdict(loss).items()} for name, loss in losses.items()}
        write_file(out, json.dumps(rows) + "\n")


@eval_app.command("tasks")
def tasks_command(
    model: Model,
    tasks: Annotated[Path, typer.Option(help="Output of `outrider data tasks`.")],
    task: Annotated[list[str] | None, typer.Option(help="Only this task; may be repeated.")] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first items of each task.", min=1)] = None,
    quick: Annotated[bool, typer.Option("--quick", help="The 200 items of each task that `quick` cards have.")] = False,
    parent: Parent = None,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    batch_tokens: Annotated[int, typer.Option(help="Padded tokens of a batch at most.", min=1)] = 4_096,
    out: Out = None,
) -> None:
    """Standard scores of each task set, with standard errors."""
    from transformers import AutoTokenizer

    from outrider.refactor.tasks.chosen import picked
    from outrider.refactor.tasks.items import read_items
    from outrider.refactor.tasks.scorers import model_scorer
    from outrider.refactor.tasks.scoring import score

    results: dict[str, Any] = {}
    with input_errors():
        names = task or sorted(path.stem for path in tasks.glob("*.jsonl"))
        if not names:
            raise InputError("E_TASK", tasks, "tasks", "no .jsonl file", "the output of `outrider data tasks`")
        mode = "quick" if quick else "full"
        items = {name: picked(read_items(tasks / f"{name}.jsonl"), mode)[:limit] for name in names}
        loaded = load_model(model, device, dtype, parent)
        scorer = model_scorer(loaded, AutoTokenizer.from_pretrained(parent or model), batch_tokens=batch_tokens)
        for name in names:
            scores = score(items[name], scorer)
            results[name] = asdict(scores)
            for metric, row in scores.summary().items():
                print(f"{name} {metric}: {row['value']:.4f} ± {row['stderr']:.4f}, {row['items']} items", flush=True)
    if out:
        write_file(out, json.dumps(results) + "\n")


@eval_app.command("compare")
def compare_command(
    scores: Annotated[Path, typer.Option(help="Written by `outrider eval tasks --out`.")],
    harness: Annotated[Path, typer.Option(help="Results file of lm-evaluation-harness on the same tasks and items.")],
    apart: Annotated[float, typer.Option(help="Points (perplexity: percent) that two figures may be apart.")] = 0.1,
) -> None:
    """Compares the built-in scores with those of lm-evaluation-harness; exit code 1 when they are further apart."""
    from outrider.refactor.tasks.harness import compare
    from outrider.refactor.tasks.scoring import TaskScores

    with input_errors():
        ours, theirs = _json(scores), _json(harness).get("results", {})
        names = [name for name in ours if f"outrider_{name}" in theirs]
        if not names:
            raise InputError("E_TASK", harness, "results", ", ".join(theirs) or "nothing", "outrider_<task>")
    worst = 0.0
    for name in names:
        for row in compare(TaskScores(**ours[name]).summary(), theirs[f"outrider_{name}"]):
            worst = max(worst, float(row["apart"]))
            print(f"{name} {row['metric']}: {row['ours']:.6f} and {row['harness']:.6f}, {row['apart']:.4f} apart")
    if worst > apart:
        raise typer.Exit(1)


def card_command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder with quality_card.json.")],
) -> None:
    """Makes quality_card.md and quality_card.png from quality_card.json, the same bytes each time."""
    from outrider.refactor.card.write import regenerate

    with input_errors():
        for path in regenerate(folder):
            print(path)


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError("E_TASK", path, "scores", str(error), "a JSON file") from error
    if not isinstance(value, dict):
        raise InputError("E_TASK", path, "scores", type(value).__name__, "an object")
    return value


def _require_same_vocabulary(model: Path, vocab: int, data: "DataSet") -> None:
    """Ids of another tokenizer would give figures that look like figures."""
    if vocab != data.vocab:
        raise InputError("E_VOCAB", data.folder, "vocab", f"{data.vocab}", f"{vocab}, the model's")
    tokenizer = model / "tokenizer.json"
    if tokenizer.is_file():
        found = hashlib.sha256(tokenizer.read_bytes()).hexdigest()
        if found != data.tokenizer_sha256:
            raise InputError("E_VOCAB", tokenizer, "sha256", found, f"{data.tokenizer_sha256}, as in {data.folder}")


def load_model(folder: Path, device: str, dtype: str, parent: Path | None = None):
    """A HF causal model in evaluation mode; a refactored one with its router on.

    `parent`: of a folder without weights of its own.

    Raises:
        InputError: E_USAGE when the parent is missing; E_MODEL when there is no such model, it cannot be loaded, or the
            parent is not the one that an adapter was tuned beside.
    """
    import torch
    from transformers import AutoModelForCausalLM

    if dtype not in ("float32", "bfloat16", "float16"):
        raise InputError("E_USAGE", folder, "--dtype", repr(dtype), "float32, bfloat16 or float16")
    check_parent(folder, parent)
    weights = parent or folder
    if not (weights / "config.json").is_file():
        raise InputError("E_MODEL", weights, "config.json", "no such file", "a HF model folder")
    if parent:
        _require_parent_of(folder, parent)
    try:
        model = AutoModelForCausalLM.from_pretrained(weights, dtype=getattr(torch, dtype)).to(device).eval()
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError("E_MODEL", weights, "model", str(error).splitlines()[0][:120], "a HF causal model") from error
    if (folder / HEADER).exists():
        from outrider import hf

        hf.apply(model, folder, channels="parent" if parent else "exported")
    return model


def _require_parent_of(folder: Path, parent: Path) -> None:
    from outrider import _core
    from outrider.refactor.artifact import load_artifact

    if (folder / "config.json").is_file():
        raise InputError("E_MODEL", folder, "config.json", "weights of its own", "none, as --parent is given")
    adapter = load_artifact(folder).adapter
    if adapter and (found := _core.weights_sha256(str(parent))) != adapter.base_sha256:
        raise InputError("E_MODEL", parent, "sha256 of the weights", found, f"{adapter.base_sha256}, as in {folder}")
