"""All samples of all databases; writes docs/results/conformance.json. Takes long: `make test-long`."""

import argparse
import datetime
import json
import pathlib
import subprocess
import sys

_ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(_ROOT / part) for part in ("python", "examples", "tests/python", "tests/conformance")]

DEFAULT_OUTPUT = _ROOT / "docs/results/conformance.json"

import runner  # noqa: E402
import torch  # noqa: E402
from cases import DATABASES  # noqa: E402


def commit():
    """The checked-out commit, with a mark when the tree has changes."""
    answer = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"], cwd=_ROOT, capture_output=True, text=True
    )
    return answer.stdout.strip() or "unknown"


def summary(database, verdicts):
    """Counts of one database."""
    failures = [line for verdict in verdicts for line in verdict.failures]
    skips = runner.SKIPS[database]
    return {
        "entries": len(verdicts) + len(skips),
        "skipped": len(skips),
        "skip_reasons": skips,
        "samples": sum(verdict.samples for verdict in verdicts),
        "covered_samples": sum(verdict.covered for verdict in verdicts),
        "raising_samples": sum(verdict.raised for verdict in verdicts),
        "eager_differs_by_itself": sorted(verdict.entry for verdict in verdicts if verdict.by_itself),
        "entries_equal": sum(not verdict.failures for verdict in verdicts),
        "disagreements": len(failures),
        "first_disagreements": failures[:50],
    }


def run(samples_max, output):
    """Runs everything, writes the result and returns the number of disagreements."""
    torch.set_num_threads(1)
    result = {
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
        "torch": torch.__version__,
        "samples_max": samples_max,
        "databases": {},
    }
    for database in DATABASES:
        verdicts = []
        for name, info in runner.entries(database):
            verdicts.append(runner.check_entry(database, name, info, samples_max))
            state = "equal" if not verdicts[-1].failures else f"{len(verdicts[-1].failures)} DIFFER"
            print(f"{database}:{name}: {verdicts[-1].samples} samples, {state}", flush=True)
        result["databases"][database] = summary(database, verdicts)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(result, indent=1) + "\n")
    disagreements = sum(part["disagreements"] for part in result["databases"].values())
    print(f"{disagreements} disagreements, written to {output}")
    return disagreements


def main():
    """The exit code says whether all bits agreed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=1_000_000, help="samples per entry at most")
    parser.add_argument("--output", type=pathlib.Path, default=DEFAULT_OUTPUT)
    arguments = parser.parse_args()
    return 1 if run(arguments.samples, arguments.output) else 0


if __name__ == "__main__":
    sys.exit(main())
