"""Small files of finished rows in one archive: masks, router, traces, logs and quality cards, never the weights."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

from outrider.refactor import card_of_run
from outrider.refactor.artifact import MASKS
from outrider.refactor.card.schema import JSON_NAME, check, dump
from row_runner import Runner, seconds_of
from row_table import Row
from row_tasks import kept_scores

# Larger files stay behind: a router of the published form with a table of its own is 100 MB at 49,152 tokens.
FILE_BYTES_MAX = 8_000_000
_FILES = (
    "experts.json",
    "log.jsonl",
    "routes.safetensors",
    f"model/{MASKS}",
    "model/outrider_router.safetensors",
    "model/outrider.json",
)
# Rows of a card, by name; `ours` stands for the row that the card is of.
_CARD_ROWS = ("dense-cont", "static", "static+", "random-router", "random-mask", "contextual", "layerwise", "carved")


def write_archive(runner: Runner, rows: list[Row], path: Path, environment: dict[str, str]) -> list[str]:
    """Files of the given rows, in folders named after them, and a card for each row with a router.

    Returns what was left out, with its size.
    """
    left_out = []
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:xz") as archive:
        for row in rows:
            folder = runner.folder(row)
            if (folder / "model" / MASKS).exists() and row.routed:
                _add_bytes(archive, f"{row.key}/{JSON_NAME}", _card(runner, row, environment).encode())
            for name in _FILES:
                file = folder / name
                if not file.exists():
                    continue
                if file.stat().st_size > FILE_BYTES_MAX:
                    left_out.append(f"{row.key}/{name}: {file.stat().st_size:,} bytes")
                else:
                    archive.add(file, f"{row.key}/{Path(name).name}")
    return left_out


def _card(runner: Runner, row: Row, environment: dict[str, str]) -> str:
    """The card's JSON; `outrider card` makes text and picture of it, where there is matplotlib."""
    path = runner.folder(row) / JSON_NAME
    results = _results(runner, row)
    measured = runner.parent()
    members: dict[str, Row | None] = {"parent": None, **{name: one for name, (one, _) in results.items()}}
    plan = runner.plan
    run = card_of_run.Run(
        model=Path(plan.model),
        folder=runner.model_of(row),
        data=Path(plan.data),
        preset=row.preset,
        results={name: result for name, (_, result) in results.items()},
        parent={split: measured[split] for split in ("test", "unseen")},
        seconds={name: sum(seconds_of(runner.folder(one)).values()) for name, (one, _) in results.items()},
        environment=environment,
        tasks={name: kept_scores(runner, one) for name, one in members.items()},
        teachers={name: plan.counted_tokens(one)["teacher_tokens"] for name, (one, _) in results.items()},
        device=plan.device,
    )
    text = dump(check(card_of_run.make_card(run), path))
    path.write_text(text)
    return text


def _results(runner: Runner, row: Row) -> dict[str, tuple[Row, dict[str, Any]]]:
    """Finished rows with the row's preset, active share and teacher, and the dense one; the row itself as `ours`."""
    from row_table import all_rows

    found = {}
    for one in all_rows():
        dense = one.name == "dense-cont"
        same = one.preset == row.preset and (dense or (one.active, one.distilled) == (row.active, row.distilled))
        result = runner.result(one) if same and one.name in _CARD_ROWS else None
        if result is not None:
            found[one.name] = (one, result)
    result = runner.result(row)
    assert result is not None
    return {**found, "ours": (row, result)}


def _add_bytes(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    archive.addfile(entry, io.BytesIO(data))


def load_rows(path: Path) -> dict[str, Any]:
    """An earlier results file, to which rows are added; an empty one where there is none."""
    return json.loads(path.read_text()) if path.exists() else {"rows": [], "documents": {}, "sweep": []}
