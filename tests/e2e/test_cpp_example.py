"""The C++ twin of the digits program: no Python in the process, the same promises."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

pytestmark = pytest.mark.timeout(180)

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_PROGRAM = pathlib.Path(os.environ.get("OUTRIDER_EXAMPLES", _ROOT / "build/dev/examples")) / "digits_cnn"
STEPS = 200


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """The exported digits."""
    path = tmp_path_factory.mktemp("digits") / "digits.csv"
    subprocess.run([sys.executable, str(_ROOT / "examples/cpp/export_digits.py"), str(path)], check=True)
    assert len(path.read_text().splitlines()) == 1797
    return path


def run(digits, state, *arguments):
    """Runs the example; returns its output lines and its state, name -> text."""
    command = [str(_PROGRAM), "--data", str(digits), "--steps", str(STEPS), "--state", str(state), *arguments]
    process = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert process.returncode == 0, process.stderr[-2000:]
    lines = state.read_text().splitlines()
    return process.stdout.splitlines(), dict(line.split(" ", 1) for line in lines)


@pytest.fixture(scope="module")
def eager(digits, tmp_path_factory):
    """The state that the eager run leaves."""
    _, state = run(digits, tmp_path_factory.mktemp("eager") / "state.txt", "--eager")
    losses = [float.fromhex(number) for number in state["losses"].split()]
    assert len(losses) == STEPS and sum(losses[-20:]) < 0.9 * sum(losses[:20])
    return state


@pytest.mark.parametrize("lane", ["inner", "outer", "auto"])
def test_equal_and_covered(digits, eager, tmp_path, lane):
    """Every bit equals the eager run's, at least 95 % of the device ops were covered, and in the lane asked for."""
    output, coexecuted = run(digits, tmp_path / "coexec.txt", "--lane", lane)
    different = [name for name in eager.keys() | coexecuted.keys() if eager.get(name) != coexecuted.get(name)]
    assert not different, f"{len(different)} values differ: {sorted(different)[:10]}"
    report = json.loads(output[-1])
    assert report["rows"] == STEPS
    assert report["covered_ops"] >= 0.95 * report["device_ops"] > 0, report
    most = "inner" if lane == "inner" else "outer"
    assert report["lanes"].get(most, 0) >= 0.9 * sum(report["lanes"].values()), report


def test_no_python_in_the_process():
    """The example links no Python library."""
    libraries = subprocess.run(["ldd", str(_PROGRAM)], capture_output=True, text=True, check=True).stdout
    assert "liboutrider.so" in libraries
    assert "libpython" not in libraries and "libtorch_python" not in libraries
