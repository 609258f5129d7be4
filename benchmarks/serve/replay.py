"""Policies against each other on recorded loads: `outrider bench` with the circumstances of the run, and one report.

PYTHONPATH=python python benchmarks/serve/replay.py serve MODEL --load azure.json --out build/replay/azure.json ...
PYTHONPATH=python python benchmarks/serve/replay.py overload MODEL --load azure.json --out build/replay/more.json ...
PYTHONPATH=python python benchmarks/serve/replay.py merge build/replay/*.json --out docs/results/serve_replay

The first two take the options of `outrider bench`; a `serve` that `--seconds` cut goes on when it is called again.
"""

import argparse
import json
import sys
from pathlib import Path

from outrider.refactor.atomic import write_file
from outrider.serve.replay.cli import bench_app
from replay_report import report

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "coexec"))

from measure import circumstances


def measure(arguments: list[str]) -> None:
    code = bench_app(arguments, standalone_mode=False)
    if code:
        sys.exit(code)
    path = Path(arguments[arguments.index("--out") + 1])
    write_file(path, json.dumps({**json.loads(path.read_text()), "circumstances": circumstances()}, indent=1) + "\n")


def merge(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="replay.py merge")
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True, help="without suffix: .json and .md are written")
    given = parser.parse_args(arguments)
    found = {path.stem: json.loads(path.read_text()) for path in sorted(given.results)}
    whole, text = report(found)
    write_file(given.out.with_suffix(".json"), json.dumps(whole, indent=1) + "\n")
    write_file(given.out.with_suffix(".md"), text)


def main() -> None:
    command, *rest = sys.argv[1:] or ["--help"]
    if command == "merge":
        merge(rest)
    elif command in ("serve", "overload"):
        measure([command, *rest])
    else:
        print(__doc__)


if __name__ == "__main__":
    main()
