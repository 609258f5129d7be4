"""Rows of the comparison on one GPU: trains what is missing, writes all figures after every row.

    python benchmarks/refactor/gpu_rows.py --model MODEL --data DATA --work build/rows --out docs/results --dry-run
    python benchmarks/refactor/gpu_rows.py --model MODEL --data DATA --work build/rows --out docs/results \
        --rows 'outrider-0.5-*' --tokens 7168000 --seconds 480

`--seconds` stops behind a checkpoint; the same call goes on. `--work` keeps everything, weights too; `--out` gets
refactor_h100.json and .md, and with `--archive` one file of masks, routers, traces and cards. `--merge FILE` begins
with the rows of an earlier results file; a row measured anew takes the earlier one's place. Rows are named in
row_table.py.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "python"), str(ROOT / "benchmarks" / "coexec"), str(Path(__file__).resolve().parent)]

import measure  # noqa: E402
import row_files  # noqa: E402
import row_results  # noqa: E402
import row_tasks  # noqa: E402
from outrider.refactor.atomic import write_file  # noqa: E402
from row_runner import Clock, Runner  # noqa: E402
from row_table import Plan, Row, chosen_rows  # noqa: E402


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of the dense parent")
    parser.add_argument("--data", required=True, help="output of `outrider data prepare` or `outrider data trim`")
    parser.add_argument("--work", type=Path, required=True, help="kept between calls; weights and checkpoints")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--name", default="refactor_h100", help="name of the results files")
    parser.add_argument("--rows", default="*", help="keys or patterns, comma between them")
    parser.add_argument("--seconds", type=float, default=0, help="stop behind a checkpoint; 0: never")
    parser.add_argument("--tokens", type=int, default=7_168_000, help="tuning tokens of a row")
    parser.add_argument("--router-tokens", type=int, default=3_268_608)
    parser.add_argument("--eval-tokens", type=int, default=65_536, help="per domain")
    parser.add_argument("--batch", type=int, default=28)
    parser.add_argument("--sequence", type=int, default=1_024)
    parser.add_argument("--micro-batch", type=int, default=28)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--set", action="append", default=[], metavar="[ROWS:]NAME=VALUE", help="option of the core")
    parser.add_argument("--sweep", default="", metavar="RATES", help="only try learning rates, comma between them")
    parser.add_argument("--sweep-tokens", type=int, default=1_433_600)
    parser.add_argument("--score", default="", metavar="ROWS", help="rows to score on tasks once they are finished")
    parser.add_argument("--tasks", default="quick", choices=("quick", "full"))
    parser.add_argument("--task-source", type=Path, help="folder of the published task files")
    parser.add_argument("--task-names", default="", help="only these, comma between them")
    parser.add_argument("--archive", default="", metavar="ROWS", help="rows whose small files go into OUT/NAME.tar.xz")
    parser.add_argument("--merge", type=Path, help="earlier results file")
    parser.add_argument("--dry-run", action="store_true", help="print rows and tokens, and run nothing")
    return parser.parse_args(argv)


def change_of(text: str) -> tuple[str, str, Any]:
    """`[ROWS:]NAME=VALUE` -> (pattern, name, value)."""
    name, equals, value = text.partition("=")
    if not equals:
        raise SystemExit(f"--set {text}: expected [ROWS:]NAME=VALUE")
    pattern, colon, rest = name.rpartition(":")
    try:
        parsed = json.loads(value)
    except ValueError:
        parsed = value
    return (pattern if colon else "*"), rest, parsed


def plan_of(options: argparse.Namespace) -> Plan:
    return Plan(
        model=options.model,
        data=options.data,
        tokens=options.tokens,
        router_tokens=options.router_tokens,
        batch=options.batch,
        sequence=options.sequence,
        micro_batch=options.micro_batch,
        eval_tokens=options.eval_tokens,
        seed=options.seed,
        device=options.device,
        dtype=options.dtype,
        changes=tuple(change_of(text) for text in options.set),
    )


class Results:
    """The results file: rows of this plan, and those of other plans and earlier calls that it already had."""

    def __init__(self, runner: Runner, folder: Path, name: str, merge: Path | None) -> None:
        self._runner, self._folder, self._name = runner, folder, name
        self._kept = runner.work / f"{name}.json"  # survives where the results folder does not
        before = row_files.load_rows(merge) if merge else row_files.load_rows(self._kept)
        self._rows = {row["id"]: row for row in before["rows"]}
        self._documents: dict[str, Any] = dict(before["documents"])
        self._tasks = {entry["row"]: entry for entry in before.get("tasks", [])}
        self._sweep: list[dict[str, Any]] = list(before.get("sweep", []))

    def add(self, row: Row) -> None:
        self._add(row_results.row_of(self._runner, row), self._runner.result(row)["eval"], "refactored")

    def add_parent(self) -> None:
        parent = self._runner.parent()
        self._add(row_results.parent_row(parent), {split: {"": parent[split]} for split in ("test", "unseen")}, "")

    def add_sweep(self, entries: list[dict[str, Any]]) -> None:
        same = ("row", "rate", "tokens")
        new = {tuple(entry[name] for name in same): entry for entry in [*self._sweep, *entries]}
        self._sweep = list(new.values())

    def add_tasks(self, rows: list[Row]) -> None:
        for entry in row_tasks.task_results(self._runner, rows):
            self._tasks[entry["row"]] = row_tasks.merged(self._tasks.get(entry["row"], {}), entry)

    def write(self) -> None:
        rows = [dict(row) for row in self._rows.values()]
        documents = {row["id"]: self._documents[row["id"]] for row in rows}
        comparisons = row_results.compare_all(rows, documents)
        row_results.add_ratios(rows, comparisons)
        result = {
            "model": Path(self._runner.plan.model).name,
            "circumstances": measure.circumstances(),
            "rows": rows,
            "comparisons": comparisons,
            **{name: row_results.compare_all(rows, documents, base) for name, (base, _) in row_results.FURTHER.items()},
            "tasks": list(self._tasks.values()),
            "sweep": self._sweep,
            "documents": documents,
        }
        text = row_results.dump(result)
        self._folder.mkdir(parents=True, exist_ok=True)
        write_file(self._kept, text)
        write_file(self._folder / f"{self._name}.json", text)
        write_file(self._folder / f"{self._name}.md", row_results.markdown(result))

    def _add(self, row: dict[str, Any], evaluated: dict[str, Any], mode: str) -> None:
        unseen = evaluated.get("unseen", {}).get(mode) or {}
        documents = row_results.documents_of(evaluated["test"][mode], unseen)
        for name in [name for name, one in self._rows.items() if row_results.is_rerun(row, one)]:
            del self._rows[name]
            if name != row["id"] or (row["preset"] and self._documents[name] != documents):
                self._tasks.pop(name, None)  # of another model
        self._rows[row["id"]] = row
        self._documents[row["id"]] = documents


def dry_run(plan: Plan, rows: list[Row]) -> None:
    """Rows in order with their tokens and optimizer steps."""
    total = 0
    for row in rows:
        counted, options = plan.counted_tokens(row), plan.options(row, None)
        steps = options["rounds"] * (options["router.steps"] + options["expert.steps"]) + options["router.last_steps"]
        total += counted["tokens"] + counted["router_tokens"]
        print(f"{row.key}: {counted['tokens']:,} tuning and {counted['router_tokens']:,} router tokens, {steps} steps")
    print(f"{len(rows)} rows, {total:,} tokens")


def run_rows(runner: Runner, rows: list[Row], results: Results) -> bool:
    """False when the time ended before the last row, or a row failed: the others run all the same."""
    results.add_parent()
    failed = []
    for row in rows:
        try:
            if not runner.run(row):
                return False
        except ValueError as error:  # an error line of the core
            failed.append(row.key)
            runner.log(f"{row.key}: {error}")
            continue
        results.add(row)
        results.write()
    if failed:
        runner.log(f"failed: {', '.join(failed)}")
    return not failed


def run_sweep(runner: Runner, rows: list[Row], rates: list[float], tokens: int, results: Results) -> bool:
    """Rows that teach are run in full first."""
    for row in rows:
        if row.name == "dense-cont":
            if not runner.run(row):
                return False
            continue
        entries = runner.sweep(row, rates, tokens)
        if entries is None:
            return False
        results.add_sweep(entries)
        results.write()
    return True


def score(runner: Runner, rows: list[Row], options: argparse.Namespace, results: Results) -> bool:
    """False when the time ended before the last task."""
    if options.task_source is None:
        raise SystemExit("--score needs --task-source, the folder of the published task files")
    names = [name for name in options.task_names.split(",") if name]
    done = row_tasks.score_rows(runner, rows, row_tasks.task_items(options.task_source, options.tasks, names))
    results.add_tasks(rows)
    return done


def write_archive(runner: Runner, options: argparse.Namespace) -> None:
    """OUT/NAME.tar.xz; says what was too large for it."""
    finished = [row for row in chosen_rows(options.archive.split(",")) if runner.result(row) is not None]
    environment = {name: str(value) for name, value in measure.circumstances().items()}
    path = options.out / f"{options.name}.tar.xz"
    for line in row_files.write_archive(runner, finished, path, environment):
        print(f"left out of the archive: {line}")


def main(argv: list[str] | None = None) -> int:
    """Exit code: 0 when every row is finished, 3 when the time ended first or a row failed."""
    options = arguments(argv)
    plan, rows = plan_of(options), chosen_rows([name.strip() for name in options.rows.split(",")])
    if options.dry_run:
        dry_run(plan, rows)
        return 0
    clock = Clock(options.seconds, time.monotonic())
    scored = chosen_rows(options.score.split(",")) if options.score else []
    kept = frozenset(row.key for row in scored)
    runner = Runner(plan, options.work, clock, lambda line: print(line, flush=True), kept)
    results = Results(runner, options.out, options.name, options.merge)
    if options.sweep:
        rates = [float(rate) for rate in options.sweep.split(",")]
        done = run_sweep(runner, rows, rates, options.sweep_tokens, results)
    else:
        done = run_rows(runner, rows, results)
    if done and scored:
        done = score(runner, scored, options, results)
    results.write()
    if options.archive:
        write_archive(runner, options)
    print("all rows are finished" if done else "stopped: the same call goes on")
    return 0 if done else 3


if __name__ == "__main__":
    sys.exit(main())
