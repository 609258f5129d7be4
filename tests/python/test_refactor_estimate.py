"""What a dry run says, against what the run then takes."""

import json
import subprocess
import sys
from unittest import mock

import pytest
from outrider.refactor import estimate, run, smoke

# Tunes the row `ours` alone and prints what was said before and what was seen. Peaks are per process: one each.
RUN = """
import json, re, sys
from pathlib import Path
from outrider.refactor import run

model, data, out, changes = sys.argv[1:]
request = run.Request(
    model=Path(model), data=Path(data), out=Path(out), rows=("ours",), changes=tuple(json.loads(changes).items())
)
said = run.estimate(request)


def memory(field):  # what getrusage calls a peak begins with that of the process before exec
    return 1024 * int(re.search(rf"{field}:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])


before = memory("VmRSS")
seen = []
run.refactor(request, lambda row, step: seen.append(step))
row = json.loads((Path(out) / "rows.json").read_text())["ours"]
peak = memory("VmHWM") - before
print(json.dumps({"said": said, "steps": len(seen), "positions": seen[-1]["positions"], "row": row["tokens"],
                  "peak": peak}))
"""
# Passes large enough to stand out beside what a process needs anyway.
SIZES = {
    "rounds": 1,
    "router.steps": 1,
    "router.last_steps": 1,
    "expert.steps": 3,
    "batch": 16,
    "micro_batch": 16,
    "sequence": 512,
    "chunk": 2048,
    "calibration.samples": 1,
    "calibration.tokens": 128,
    "experts.count": 4,
    "coverage.rounds": 2,
    "eval_tokens": 512,
    "eval_taus": "",
}


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    root = tmp_path_factory.mktemp("estimate")
    model, text = smoke.make(root / "smoke", max_bytes=1 << 17)

    def row(name, **changes):
        sizes = SIZES | {key.replace("_", ".", 1): value for key, value in changes.items()}
        command = [sys.executable, "-c", RUN, str(model), str(text), str(root / name), json.dumps(sizes)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr[-2000:]
        return json.loads(done.stdout.splitlines()[-1])

    return {"alone": row("alone"), "joint": row("joint", router_joint="coverage")}


@pytest.mark.parametrize("name", ["alone", "joint"])
def test_tokens_and_steps_are_those_of_the_run(measured, name):
    found = measured[name]
    assert found["said"]["steps_per_row"] == found["steps"] == found["positions"] == 1 + 3 + 1
    assert found["said"]["expert_tokens_per_row"] == found["row"]["expert"] == 3 * 16 * 512
    assert found["said"]["router_tokens"] == found["row"]["router"] == 2 * 16 * 512, "joint steps cost none"


def test_memory_is_of_the_order_that_was_said(measured):
    for name, found in measured.items():
        assert found["said"]["memory_bytes"] / 3 < found["peak"] < 1.5 * found["said"]["memory_bytes"], name
    said, peak = (
        {name: pick(found) for name, found in measured.items()}
        for pick in (lambda found: found["said"]["memory_bytes"], lambda found: found["peak"])
    )
    assert said["joint"] == pytest.approx(said["alone"], rel=0.05)
    assert peak["joint"] == pytest.approx(peak["alone"], rel=0.15), "h is made again, not kept"


def test_a_router_that_learns_with_the_experts_takes_more_time(tmp_path):
    model, text = smoke.make(tmp_path / "smoke", max_bytes=1 << 16)
    seconds = []
    for joint in ("off", "coverage"):
        changes = (("router.joint", joint), ("expert.steps", 10_000))
        with mock.patch.object(estimate, "_rate", return_value=(1e9, "given")):
            request = run.Request(model=model, data=text, out=tmp_path / "out", changes=changes)
            seconds.append(run.estimate(request)["time_seconds"])
    assert 1.01 < seconds[1] / seconds[0] < 1.055, "5.5 % of one row in three"
