"""Policies against each other, on a trace of requests: `outrider bench serve` with the circumstances of the run.

PYTHONPATH=python python benchmarks/serve/replay.py MODEL --out replay.json --rows 200 --scale-lengths 8
... --trace azure2023_conv.csv.xz --texts FOLDER, once per trace
"""

import json
import sys
from pathlib import Path

from outrider.refactor.atomic import write_file
from outrider.serve.replay.cli import bench_app

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "coexec"))

from measure import circumstances


def main() -> None:
    arguments = sys.argv[1:]
    code = bench_app(["serve", *arguments], standalone_mode=False)
    if code:
        sys.exit(code)
    if "--out" in arguments:
        path = Path(arguments[arguments.index("--out") + 1])
        found = json.loads(path.read_text())
        write_file(path, json.dumps({**circumstances(), **found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
