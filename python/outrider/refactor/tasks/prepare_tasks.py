"""`outrider data tasks`: published task files -> canonical JSONL and a task description for lm-evaluation-harness."""

from collections.abc import Iterable
from pathlib import Path

from outrider.refactor.atomic import atomic_folder, write_file
from outrider.refactor.tasks.harness import task_yaml
from outrider.refactor.tasks.items import kind_of, to_lines
from outrider.refactor.tasks.shots import PUBLISHED, with_shots
from outrider.refactor.tasks.sources import SOURCES, load

_BYTES_MAX = 400_000_000


def prepare_tasks(
    source: Path, out: Path, names: Iterable[str] = tuple(SOURCES), *, shots: str = "published", force: bool = False
) -> dict[str, int]:
    """Writes `OUT/<task>.jsonl` and `OUT/harness/outrider_<task>.yaml`; returns the number of items of each task.

    `shots`: `published` gives ARC-Challenge 25 and HellaSwag 10 examples, `none` gives none; MMLU has its five always.

    Raises:
        InputError: E_TASK for an unknown task or a file that does not fit; E_EXISTS and E_DISK for `out`.
    """
    counts: dict[str, int] = {}
    with atomic_folder(out, force=force, needed_bytes=_BYTES_MAX) as folder:
        (folder / "harness").mkdir()
        for name in names:
            items = load(name, source)
            items = with_shots(items, PUBLISHED.get(name, 0) if shots == "published" else 0)
            write_file(folder / f"{name}.jsonl", to_lines(items))
            file = Path(out).resolve() / f"{name}.jsonl"
            write_file(folder / "harness" / f"outrider_{name}.yaml", task_yaml(name, kind_of(items[0]), file))
            counts[name] = len(items)
    return counts
