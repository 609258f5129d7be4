"""`outrider coexec run` on an unedited script: the same output, exit code and errors as `python`."""

import json
import os
import pathlib
import signal
import subprocess
import sys

import pytest

pytestmark = pytest.mark.timeout(180)

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_SCRIPT = pathlib.Path(__file__).with_name("train_script.py")


def launch(prefix, arguments, **environment):
    """Runs the script in a process of its own and returns the finished process."""
    path = os.pathsep.join([str(_ROOT / "python"), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, *prefix, str(_SCRIPT), *arguments],
        env=os.environ | {"PYTHONPATH": path} | environment,
        capture_output=True,
        text=True,
        timeout=150,
    )


def plain(*arguments):
    """`python train_script.py ...`"""
    return launch([], arguments)


def coexecuted(*arguments, options=(), **environment):
    """`outrider coexec run [options] train_script.py ...`"""
    return launch(["-m", "outrider", "coexec", "run", *options], arguments, **environment)


def result_line(process):
    """Returns the JSON line that the script prints at its end."""
    assert process.returncode == 0, process.stderr[-2000:]
    return next(json.loads(line) for line in process.stdout.splitlines() if line.startswith('{"losses"'))


def test_same_bits_and_a_report(tmp_path):
    """Losses, accuracies and a digest of every bit agree; the run was covered."""
    report = tmp_path / "report.json"
    expected = result_line(plain())
    process = coexecuted(options=["--report", str(report)])
    assert result_line(process) == expected
    assert expected["accuracies"][-1] > 0.5
    rows = json.loads(report.read_text())
    rows = rows["rows"] if isinstance(rows, dict) else rows
    late = rows[20:]
    assert sum(row["covered_ops"] for row in late) >= 0.8 * sum(row["device_ops"] for row in late)


def test_checkpoint_and_resume(tmp_path):
    """A run that is stopped after one epoch and resumed, both times co-executed."""
    digests = []
    for run, name in ((plain, "plain.pt"), (coexecuted, "coexec.pt")):
        path = str(tmp_path / name)
        result_line(run("--epochs", "1", "--checkpoint", path))
        digests.append(result_line(run("--epochs", "2", "--checkpoint", path, "--resume")))
    assert digests[0] == digests[1]


def test_kill_switch_gives_the_plain_run():
    """OUTRIDER=0 loads nothing and changes nothing."""
    assert result_line(coexecuted("--epochs", "1", OUTRIDER="0")) == result_line(plain("--epochs", "1"))


def test_error_has_the_same_exit_code_and_traceback():
    """The user's exception ends the process as without Outrider."""
    expected = plain("--fail", "error")
    actual = coexecuted("--fail", "error")
    assert (actual.returncode, expected.returncode) == (1, 1)
    assert "RuntimeError: something went wrong in the training loop" in actual.stderr
    assert 'train_script.py", line' in actual.stderr


def test_exit_code_is_passed_on():
    """sys.exit(7) stays 7."""
    assert coexecuted("--fail", "exit").returncode == plain("--fail", "exit").returncode == 7


def test_interrupt_ends_the_run():
    """Ctrl-C in mid-training ends the process, with KeyboardInterrupt and no hang."""
    expected = plain("--fail", "interrupt")
    actual = coexecuted("--fail", "interrupt")
    # Death by the signal and the exit code that stands for it are the same to a shell.
    assert expected.returncode in (-signal.SIGINT, 128 + signal.SIGINT)
    assert actual.returncode in (-signal.SIGINT, 128 + signal.SIGINT)
    assert "KeyboardInterrupt" in actual.stderr
