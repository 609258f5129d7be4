"""A whole refactoring: text -> tokens -> comparison rows -> model folder with its quality card."""

import json
import platform
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from outrider import shims
from outrider.refactor import domains, prepare
from outrider.refactor import estimate as estimates
from outrider.refactor.artifact import HEADER, seal
from outrider.refactor.atomic import atomic_folder, remove, require_space, write_file
from outrider.refactor.budgets import (
    BUDGETS,
    DEFAULT_ROWS,
    ROWS,
    budget_options,
    calibration_tokens,
    row_options,
)
from outrider.refactor.card.write import write_card
from outrider.refactor.data_set import load_data
from outrider.refactor.errors import InputError
from outrider.refactor.self_text import Progress as OwnProgress
from outrider.refactor.self_text import SelfOptions, token_count, write_self_text
from outrider.refactor.tasks.chosen import TaskChoice, score_all
from outrider.refactor.tasks.items import Item
from outrider.refactor.tasks.scoring import TaskScores
from outrider.refactor.tokenizer import load_tokenizer

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template.jinja",
)

NO_TASKS = TaskChoice()
ADAPTER_FOLDER = "adapter"
CARD_FILES = ("quality_card.json", "quality_card.md", "quality_card.png")
OWN = "self:"
OWN_ROWS = 512  # texts at once on a GPU
OWN_TEACHER = {"teacher": "parent", "distill": 1.0}

# row, what the core reports behind a step
Progress = Callable[[str, dict[str, Any]], None]
ImportProgress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Request:
    """What to refactor. `model` is a folder or a GGUF file; `data` is a folder of text, one made by `outrider data`, or
    `self:TOKENS`: text that the parent writes itself, with the parent as the teacher."""

    model: Path
    data: Path
    out: Path
    table: str | None = None
    preset: str = "outrider"
    budget: str = "cpu-smoke"
    active: float = 0.5
    rows: tuple[str, ...] = DEFAULT_ROWS
    seed: int = 0
    max_tokens: int | None = None
    changes: tuple[tuple[str, Any], ...] = ()  # further options of the core
    tasks: TaskChoice = NO_TASKS
    force: bool = False

    @property
    def work(self) -> Path:
        """Where an interrupted run goes on."""
        return self.out.with_name(self.out.name + ".work")

    @property
    def own_tokens(self) -> int | None:
        text = str(self.data)
        return token_count("outrider refactor", text[len(OWN) :]) if text.startswith(OWN) else None

    def options(self) -> dict[str, Any]:
        """Options of the core for the row `ours`, every field filled in."""
        from outrider import _core

        if self.budget not in BUDGETS:
            raise InputError("E_USAGE", "outrider refactor", "--budget", self.budget, " or ".join(BUDGETS))
        changes = (OWN_TEACHER if self.own_tokens else {}) | dict(self.changes)
        named = budget_options(self.budget, self.preset, changes)
        named |= {"preset": self.preset, "experts.keep": self.active, "seed": self.seed}
        return json.loads(_core.refactor_options(json.dumps(named | {"model": str(self.model)})))


def estimate(request: Request) -> dict[str, Any]:
    """What the request will take, see estimate.py; nothing is written.

    Raises:
        InputError: text or model that cannot be read.
    """
    if request.own_tokens:
        count = 2  # conversations and other texts
    elif (request.data / "data.json").is_file():
        data = load_data(request.data)
        count = len(data.domains) + len(data.unseen)
    else:
        count = len(_files(request).all)
    return estimates.estimate(request.model, request.options(), request.rows, count)


def as_folder(request: Request, progress: ImportProgress | None = None) -> Request:
    """The request with a GGUF file imported, once, into the working folder."""
    if request.model.suffix != ".gguf":
        return request
    _check(request)
    folder = request.work / request.model.stem
    if not folder.exists():
        from outrider.model_import import import_gguf

        request.work.mkdir(parents=True, exist_ok=True)
        import_gguf(request.model, folder, progress=progress)
    return replace(request, model=folder)


def write_own_text(request: Request, progress: OwnProgress = lambda domain, tokens: None) -> None:
    """The first stage of a request for `self:TOKENS`; nothing where it is done already, or for other requests."""
    out = request.work / "data"
    if request.own_tokens is None or _has_text(request):
        return
    _check(request)
    request.work.mkdir(parents=True, exist_ok=True)
    write_self_text(request.model, out, _own_options(request, request.own_tokens), progress=progress)


def refactor(
    request: Request, progress: Progress = lambda row, step: None, note: Callable[[str], None] = lambda line: None
) -> dict[str, Any]:
    """Runs or resumes; returns the quality card. `OUT` appears complete, at the end, or not at all.

    `note` takes a line for each score of a task.

    Raises:
        InputError: as its parts say. ValueError: an error line of the core.
    """
    _check(request)
    require_space(request.out.parent, estimate(request)["disk_bytes"])
    items = request.tasks.items()
    request.work.mkdir(parents=True, exist_ok=True)
    request = as_folder(request)
    data = _prepared(request)
    results, seconds = {}, {}
    for row in request.rows:
        started = time.monotonic()
        results[row] = _run_row(request, data, row, progress)
        seconds[row] = _seconds(request, row, time.monotonic() - started)
    parent = _parent(request, data)
    tasks = _task_scores(request, data, items, note)
    with atomic_folder(request.out, force=request.force) as folder:
        shutil.copytree(request.work / "rows" / "ours" / "model", folder, dirs_exist_ok=True)
        for name in TOKENIZER_FILES:
            if (request.model / name).is_file():
                shutil.copyfile(request.model / name, folder / name)
        seal(folder)
        from outrider.refactor import card_of_run  # torch is imported late: the command line starts without it

        names = (request.model, folder, data, request.preset)
        run = card_of_run.Run(*names, results, parent, seconds, _environment(), tasks)
        card = card_of_run.make_card(run)
        write_card(card, folder)
        write_file(folder / "rows.json", json.dumps(results, separators=(",", ":")) + "\n")
        _keep_routes(request, folder / "routes")
        if tasks:
            plain = {row: {task: asdict(one) for task, one in scores.items()} for row, scores in tasks.items()}
            write_file(folder / "tasks.json", json.dumps(plain, separators=(",", ":")) + "\n")
        _add_adapter(request.work / "rows" / "ours" / ADAPTER_FOLDER, folder)
    remove(request.work)
    return card


def _keep_routes(request: Request, folder: Path) -> None:
    """Copies the route trace of every row that has one."""
    for row in request.rows:
        trace = request.work / "rows" / row / "routes.safetensors"
        if trace.is_file():
            folder.mkdir(exist_ok=True)
            shutil.copyfile(trace, folder / f"{row}.safetensors")


def _add_adapter(source: Path, folder: Path) -> None:
    """What was tuned beside the parent, where that is how it was, with the card of the run."""
    if not source.is_dir():
        return
    target = folder / ADAPTER_FOLDER
    shutil.copytree(source, target)
    seal(target)
    for name in CARD_FILES:
        shutil.copyfile(folder / name, target / name)


def _check(request: Request) -> None:
    if request.out.name in ("", ".."):
        raise InputError("E_USAGE", "outrider refactor", "--out", f"{request.out}", "a folder with a name of its own")
    request.options()
    unknown = [row for row in request.rows if row not in ROWS]
    if unknown or "ours" not in request.rows:
        raise InputError("E_USAGE", "outrider refactor", "--rows", ", ".join(request.rows), f"ours, and of {[*ROWS]}")
    is_file = request.model.suffix == ".gguf" and request.model.is_file()
    if not is_file and not (request.model / "config.json").is_file():
        raise InputError(
            "E_READ", request.model, "config.json", "no such file", "the folder of a dense model, or a GGUF file"
        )
    if (request.model / HEADER).is_file():
        raise InputError("E_MODEL", request.model, HEADER, "a refactored model", "a dense one")
    if request.out.exists() and not request.force:
        raise InputError("E_EXISTS", request.out, "output", "an existing path", "none, or --force to replace it")


def _prepared(request: Request) -> Path:
    if (request.data / "data.json").is_file():
        _require_its_tokenizer(request)
        return request.data
    write_own_text(request)
    out = request.work / "data"
    if request.own_tokens or _has_text(request):
        return out
    needed = calibration_tokens(request.options())
    options = prepare.Options(max_tokens=request.max_tokens, min_train_tokens=needed)
    prepare.prepare(_files(request), load_tokenizer(request.model), out, options)
    return out


def _require_its_tokenizer(request: Request) -> None:
    """Ids of another tokenizer would be tuned on like text."""
    if not (request.model / "tokenizer.json").is_file():
        return
    found, expected = load_tokenizer(request.model).sha256, load_data(request.data).tokenizer_sha256
    if found != expected:
        where = request.model / "tokenizer.json"
        raise InputError("E_VOCAB", where, "sha256", found, f"{expected}, as in {request.data}")


def _has_text(request: Request) -> bool:
    """Whether the working folder has the text that is asked for. Other text goes, unless rows were tuned on it."""
    out = request.work / "data"
    if not out.exists():
        return False
    summary = json.loads((out / "data.json").read_text(encoding="utf-8"))
    if request.own_tokens:
        mine = summary.get("self", {})
        same = (mine.get("tokens"), mine.get("seed")) == (request.own_tokens, request.seed)
    else:
        found = (summary["sources"], summary.get("max_tokens"))
        same = found == (prepare.sources(_files(request)), request.max_tokens) and "self" not in summary
    if same and summary["tokenizer_sha256"] == load_tokenizer(request.model).sha256:
        return True
    if list((request.work / "rows").glob("*/checkpoint-*")):
        expected = "the text and tokenizer of the run that was interrupted, or another --out"
        raise InputError("E_DATA", out, "text", "other text than --data has now", expected)
    remove(out)
    return False


def _files(request: Request) -> domains.DomainFiles:
    return domains.from_table(request.table, request.data) if request.table else domains.from_folder(request.data)


def _own_options(request: Request, tokens: int) -> SelfOptions:
    options = request.options()
    rows = SelfOptions.rows if options["device"] == "cpu" else OWN_ROWS
    where = {"device": options["device"], "dtype": options["dtype"], "rows": rows}
    positions = json.loads((request.model / "config.json").read_text())["max_position_embeddings"]
    return SelfOptions(tokens, seed=request.seed, length=min(SelfOptions.length, positions), **where)


def _row_options(request: Request, data: Path, row: str) -> dict[str, Any]:
    out = request.work / "rows" / row
    files = {"model": str(request.model), "data": str(data), "out": str(out), "write_model": row == "ours"}
    return row_options(row, request.options()) | files


def _run_row(request: Request, data: Path, row: str, progress: Progress) -> dict[str, Any]:
    from outrider import _core

    options = _row_options(request, data, row)
    if options["coexec"]:
        shims.install()  # what runs between the steps may set flags
    return json.loads(_core.refactor(json.dumps(options), lambda step: progress(row, step)))


def _task_scores(
    request: Request, data: Path, items: dict[str, list[Item]], note: Callable[[str], None]
) -> dict[str, dict[str, TaskScores]]:
    """Row -> task -> scores, of the untouched parent and of every row as its last checkpoint has it."""
    from outrider import _core
    from outrider.refactor.tasks.scorers import BatchScorer, bench_scorer

    def scorer(row: str) -> BatchScorer:
        options = _row_options(request, data, "dense-cont" if row == "parent" else row)
        bench = _core.Workbench.open(json.dumps(options))
        if row == "parent":
            bench.make_experts()
        else:
            bench.restore(str(last_checkpoint(Path(options["out"]))))
        return bench_scorer(bench, request.model)

    if not items:
        return {}
    found = {}
    for row in ("parent", *request.rows):
        path = request.work / f"tasks-{row}.json"
        found[row] = score_all(items, lambda row=row: scorer(row), path, lambda line, row=row: note(f"{row}, {line}"))
    return found


def last_checkpoint(folder: Path) -> Path:
    """The newest of a run folder.

    Raises:
        InputError: E_READ when there is none.
    """
    found = list(folder.glob("checkpoint-*.safetensors"))
    if not found:
        raise InputError("E_READ", folder, "checkpoint", "none", "checkpoint-<position>.safetensors")
    return max(found, key=lambda path: int(path.stem.partition("-")[2]))


def _seconds(request: Request, row: str, now: float) -> float:
    """Of all calls that worked on a row: the first one's are kept beside it."""
    path = request.work / "rows" / row / "seconds.txt"
    total = now + (float(path.read_text()) if path.exists() else 0.0)
    write_file(path, f"{total:.3f}\n")
    return total


def _parent(request: Request, data: Path) -> dict[str, Any]:
    """The untouched model on the texts that the rows are measured on."""
    from outrider import _core

    files = {"model": str(request.model), "data": str(data), "out": str(request.work / "parent")}
    options = request.options() | ROWS["dense-cont"] | files
    bench = _core.Workbench.open(json.dumps(options))
    bench.make_experts()
    tokens = options["eval_tokens"]
    return {split: json.loads(bench.evaluate(split, all_channels=True, tokens=tokens)) for split in ("test", "unseen")}


def _environment() -> dict[str, str]:
    import torch

    from outrider import _core

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    versions = {name: str(value) for name, value in _core.version().items()}
    return {"python": platform.python_version(), "torch": str(torch.__version__), "device": device} | versions
