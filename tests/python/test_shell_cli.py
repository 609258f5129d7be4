"""The console program in its own process, against a double of the native core, compared with plain Python."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest
from fake_core import make_row

pytestmark = pytest.mark.timeout(120)

LAUNCHER = "import fake_core; fake_core.install(); from outrider.cli import main; main()"

TRAINING = """
import sys, torch
weight = torch.nn.Parameter(torch.ones(2))
optimizer = torch.optim.SGD([weight], lr=0.5)
for _ in range(int(sys.argv[1])):
    optimizer.zero_grad()
    weight.sum().backward()
    optimizer.step()
print(weight.tolist())
"""


def _environment(**changes):
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **changes}


def _run(command, folder, **environment):
    return subprocess.run(
        command,
        cwd=folder,
        env=_environment(**environment),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def _outrider(folder, *arguments, **environment):
    return _run([sys.executable, "-c", LAUNCHER, *arguments], folder, **environment)


def _script(folder, text, name="train.py"):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text))
    return path


def test_an_unedited_script_gets_a_step_for_each_optimizer_step(tmp_path):
    _script(tmp_path, TRAINING)
    done = _outrider(
        tmp_path, "coexec", "run", "--report", "r.json", "--graph", "g.dot", "--timeline", "t.json", "train.py", "4"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[-1.0, -1.0]\n"
    rows = json.loads((tmp_path / "r.json").read_text())["rows"]
    # The first iteration runs plainly; the last step holds what follows the last optimizer.step().
    assert [row["name"] for row in rows] == 4 * ["train.py"]
    assert "Steps 0 to 3: the graph runner ran" in done.stderr
    assert (tmp_path / "g.dot").read_text().startswith("digraph")
    assert "traceEvents" in json.loads((tmp_path / "t.json").read_text())


def test_quiet_prints_nothing(tmp_path):
    _script(tmp_path, TRAINING)
    done = _outrider(tmp_path, "coexec", "run", "--quiet", "train.py", "2")
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "[0.0, 0.0]\n")


def test_a_script_without_an_optimizer_is_told_what_to_do(tmp_path):
    _script(tmp_path, "print('hello')")
    done = _outrider(tmp_path, "coexec", "run", "train.py")
    assert (done.returncode, done.stdout) == (0, "hello\n")
    assert "Mark steps yourself" in done.stderr


def test_the_kill_switch_runs_the_script_plainly(tmp_path):
    _script(tmp_path, "import sys; print('torch' in sys.modules)")
    done = _outrider(tmp_path, "coexec", "run", "--report", "r.json", "train.py", OUTRIDER="0")
    assert (done.returncode, done.stdout) == (0, "False\n")
    assert "OUTRIDER=0" in done.stderr
    assert json.loads((tmp_path / "r.json").read_text()) == {"rows": []}


def test_a_script_that_marks_its_own_steps_keeps_them(tmp_path):
    _script(
        tmp_path,
        """
        import outrider, torch
        weight = torch.nn.Parameter(torch.ones(2))
        optimizer = torch.optim.SGD([weight], lr=0.5)

        @outrider.coexec
        def mine():
            weight.sum().backward()
            optimizer.step()

        for _ in range(3):
            mine()
        """,
    )
    done = _outrider(tmp_path, "coexec", "run", "--quiet", "--report", "r.json", "train.py")
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "r.json").read_text())["rows"]
    assert [row["name"] for row in rows] == ["mine", "mine", "mine"]


def test_an_exception_aborts_the_open_step(tmp_path):
    _script(tmp_path, TRAINING + "raise ValueError('after training')\n")
    done = _outrider(tmp_path, "coexec", "run", "--quiet", "--report", "r.json", "train.py", "2")
    assert done.returncode == 1
    assert done.stderr.endswith("ValueError: after training\n")
    rows = json.loads((tmp_path / "r.json").read_text())["rows"]
    # The double marks an aborted step as a recording.
    assert [row["lane"] for row in rows] == ["outer", "record"]


LIKE_PYTHON = {
    "environment of the script": """
        import __main__, os, sys, helper
        print(sys.argv, __name__, os.path.basename(__file__), os.path.basename(sys.path[0]))
        print(__main__.__dict__ is globals(), helper.VALUE, __spec__)
        """,
    "exit code": "import sys; sys.exit(7)",
    "exit with a message": "import sys; sys.exit('cannot go on')",
    "exit without a code": "import sys; sys.exit()",
    "exception": """
        def inner():
            raise KeyError("lost")

        def outer():
            try:
                inner()
            except KeyError as error:
                raise RuntimeError("wrapped") from error

        print("before", flush=True)
        outer()
        """,
    "syntax error": "x = (\n",
    "exception hook of the script": """
        import sys
        sys.excepthook = lambda kind, error, traceback: print("hook", kind.__name__, traceback.tb_lineno)
        1 / 0
        """,
    "work at exit": """
        import atexit, pickle
        class Thing:
            pass
        atexit.register(lambda: print("at exit", __name__))
        print(type(pickle.loads(pickle.dumps(Thing()))) is Thing)
        """,
}


@pytest.mark.parametrize("case", LIKE_PYTHON)
def test_a_script_runs_as_under_plain_python(tmp_path, case):
    _script(tmp_path, LIKE_PYTHON[case], "folder/train.py")
    _script(tmp_path, "VALUE = 5", "folder/helper.py")
    arguments = ["folder/train.py", "--lr", "1", "--report", "mine", "--help"]
    plain = _run([sys.executable, *arguments], tmp_path)
    ours = _outrider(tmp_path, "coexec", "run", "--quiet", *arguments)
    assert ours.stdout == plain.stdout
    assert ours.stderr == plain.stderr
    assert ours.returncode == plain.returncode


def test_a_missing_script_is_an_error(tmp_path):
    plain = _run([sys.executable, "missing.py"], tmp_path)
    done = _outrider(tmp_path, "coexec", "run", "--quiet", "missing.py")
    assert done.returncode == plain.returncode == 2
    assert "can't open file" in done.stderr and "missing.py" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_ctrl_c_stops_the_script_and_still_explains(tmp_path):
    _script(tmp_path, TRAINING + "print('ready', flush=True)\nimport time\ntime.sleep(90)\n")
    process = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, "coexec", "run", "train.py", "3"],
        cwd=tmp_path,
        env=_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while process.stdout.readline() != "ready\n":
        assert process.poll() is None
    time.sleep(0.2)  # the program has to reach its sleep
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "KeyboardInterrupt" in errors and "train.py" in errors
    assert "script_runner" not in errors
    assert "device operations" in errors


def test_explain_reads_a_report(tmp_path):
    rows = [make_row(step) for step in range(6)]
    (tmp_path / "r.json").write_text(json.dumps({"rows": rows}))
    done = _outrider(tmp_path, "coexec", "explain", "r.json")
    assert done.returncode == 0 and "Steps 0 to 5" in done.stdout
    done = _outrider(tmp_path, "coexec", "explain", "--last", "2", "r.json")
    assert done.returncode == 0 and "Steps 4 to 5" in done.stdout


@pytest.mark.parametrize("content", [None, "not json"])
def test_explain_of_a_bad_file_is_one_line(tmp_path, content):
    if content is not None:
        (tmp_path / "r.json").write_text(content)
    done = _outrider(tmp_path, "coexec", "explain", "r.json")
    assert done.returncode == 1
    assert "r.json" in done.stderr and len(done.stderr.splitlines()) == 1


def test_version_names_every_part(tmp_path):
    import torch

    done = _outrider(tmp_path, "version")
    assert done.returncode == 0
    assert f"torch: {torch.__version__}" in done.stdout and "core build: double" in done.stdout
    done = _outrider(tmp_path, "version", OUTRIDER="0")
    assert done.returncode == 0 and "switched off" in done.stdout


def test_a_core_that_cannot_be_loaded_is_said_before_the_script_runs(tmp_path):
    _script(tmp_path, "print('ran')")
    launcher = "import sys; sys.modules['outrider._core'] = None; from outrider.cli import main; main()"
    done = _run([sys.executable, "-c", launcher, "coexec", "run", "train.py"], tmp_path)
    assert done.returncode == 1
    assert done.stdout == "" and done.stderr.startswith("The native core cannot be loaded")


def test_demos_are_part_of_the_console_program(tmp_path):
    listed = _outrider(tmp_path, "demo", "--help")
    assert listed.returncode == 0 and "coexec" in listed.stdout
    refused = _outrider(tmp_path, "demo", "coexec", OUTRIDER="0")
    assert refused.returncode == 2 and "OUTRIDER=0" in refused.stderr
