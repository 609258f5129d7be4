"""All samples of all databases; writes docs/results/conformance.json and .md. Takes 15 minutes: `make test-long`.

What is finished is kept in a progress file, so that the run can be cut into pieces (`--minutes`) and goes on where it
stopped. Only verdicts of the same commit, torch and options are taken up again; a tree with changes starts anew.
"""

import argparse
import dataclasses
import datetime
import json
import pathlib
import subprocess
import sys
import time

_ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(_ROOT / part) for part in ("python", "examples", "tests/python", "tests/conformance")]

DEFAULT_OUTPUT = _ROOT / "docs/results/conformance.json"
DEFAULT_PROGRESS = _ROOT / "out/conformance_progress.jsonl"
UNFINISHED_EXIT = 3
ALL = 1_000_000  # samples; no entry has as many

import runner  # noqa: E402
import torch  # noqa: E402
from cases import DATABASES  # noqa: E402


def commit():
    """The checked-out commit, with a mark when the tree has changes."""
    answer = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"], cwd=_ROOT, capture_output=True, text=True
    )
    return answer.stdout.strip() or "unknown"


class Progress:
    """Verdicts on disk, one JSON line each, headed by what they depend on."""

    def __init__(self, path, key):
        self.path = path
        self.verdicts = {}
        if not self._load(key):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(key) + "\n")

    def _load(self, key):
        if not self.path.exists() or key["commit"].endswith(("dirty", "unknown")):
            return False
        first, *rest = self.path.read_text().splitlines() or [""]
        if first != json.dumps(key):
            return False
        for line in rest:
            self._keep(runner.Verdict(**json.loads(line)))
        return True

    def _keep(self, verdict):
        self.verdicts[verdict.database, verdict.entry] = verdict

    def add(self, verdict):
        """Keeps a verdict, here and on disk."""
        self._keep(verdict)
        with self.path.open("a") as file:
            file.write(json.dumps(dataclasses.asdict(verdict)) + "\n")


def row(database, verdicts):
    """Counts of one database."""
    return {
        "database": database,
        "entries": len(verdicts) + len(runner.SKIPS[database]),
        "skipped": len(runner.SKIPS[database]),
        "samples": sum(verdict.samples for verdict in verdicts),
        "covered_samples": sum(verdict.covered for verdict in verdicts),
        "samples_compared_without_values": sum(verdict.layouts for verdict in verdicts),
        "samples_that_raise": sum(verdict.raised for verdict in verdicts),
        "eager_differs_by_itself": sorted(verdict.entry for verdict in verdicts if verdict.by_itself),
        "disagreements": sum(len(verdict.failures) for verdict in verdicts),
        "first_disagreements": [line for verdict in verdicts for line in verdict.failures][:50],
        "skip_reasons": runner.SKIPS[database],
    }


def work_through(progress, samples_max, deadline):
    """Runs the entries that have no verdict yet; returns how many are left when time is up."""
    todo = [
        (database, name, info)
        for database in DATABASES
        for name, info in runner.entries(database)
        if (database, name) not in progress.verdicts
    ]
    for done, (database, name, info) in enumerate(todo):
        if time.monotonic() > deadline:
            return len(todo) - done
        start = time.monotonic()
        verdict = runner.check_entry(database, name, info, samples_max)
        progress.add(verdict)
        state = "equal" if not verdict.failures else f"{len(verdict.failures)} DIFFER"
        print(f"{database}:{name}: {verdict.samples} samples, {time.monotonic() - start:.1f} s, {state}", flush=True)
    return 0


PAGE = """# Conformance

Every sample of torch's own `op_db`, `module_db` and `optim_db` on the CPU, in four runs each: eager twice, co-executed
until it is covered, and co-executed with a flush after every operation. An operator or module runs forward and, where
it can, backward; an optimizer runs whole updates. Outputs, arguments, gradients, parameters, buffers, optimizer state,
shapes, strides and, where eager raises, type and text of the error are compared bit for bit. `make test-long` repeats
it.

{table}

*covered*: samples with operations that the graph runner ran. *without values*: eager is not deterministic (unwritten
memory), so shapes, strides and dtypes are compared.

Skipped: {skipped}.
"""


def page(rows):
    """The result as a Markdown page."""
    columns = {
        "database": "database",
        "entries": "entries",
        "skipped": "skipped",
        "samples": "samples",
        "covered": "covered_samples",
        "without values": "samples_compared_without_values",
        "raise in eager": "samples_that_raise",
        "disagreements": "disagreements",
    }
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    lines += ["| " + " | ".join(str(entry[field]) for field in columns.values()) + " |" for entry in rows]
    reasons = {}
    for entry in rows:
        for name, reason in entry["skip_reasons"].items():
            reasons.setdefault(reason, []).append(f"`{name}`")
    skipped = "; ".join(f"{', '.join(names)} ({reason})" for reason, names in reasons.items())
    return PAGE.format(table="\n".join(lines), skipped=skipped)


def write_result(progress, key, output):
    """Writes the counts of a finished run as JSON and as a page; returns the number of disagreements."""
    rows = [row(name, [v for (database, _), v in progress.verdicts.items() if database == name]) for name in DATABASES]
    result = {"circumstances": {"date": datetime.date.today().isoformat(), **key}, "rows": rows}
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(result, indent=1) + "\n")
    output.with_suffix(".md").write_text(page(rows))
    disagreements = sum(entry["disagreements"] for entry in rows)
    print(f"{disagreements} disagreements, written to {output}; tools/readme_results.py puts them into README.md")
    return disagreements


def main(argv=None):
    """The exit code: 0 all bits agreed, 1 they did not, 3 there is more to run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=ALL, help="samples per entry at most")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no further entry after this long")
    parser.add_argument("--output", type=pathlib.Path, default=DEFAULT_OUTPUT)
    parser.add_argument("--progress", type=pathlib.Path, default=DEFAULT_PROGRESS)
    arguments = parser.parse_args(argv)
    deadline = time.monotonic() + 60 * arguments.minutes
    torch.set_num_threads(1)
    key = {
        "commit": commit(),
        "torch": torch.__version__,
        "samples_per_entry": "all" if arguments.samples == ALL else arguments.samples,
    }
    progress = Progress(arguments.progress, key)
    if left := work_through(progress, arguments.samples, deadline):
        print(f"{left} entries left; run again to go on")
        return UNFINISHED_EXIT
    return 1 if write_result(progress, key, arguments.output) else 0


if __name__ == "__main__":
    sys.exit(main())
