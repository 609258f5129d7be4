"""`outrider serve` as a process: what it prints, its signals, its exit codes, its one-line errors."""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from fake_engine import make_folder
from outrider import cli
from served_process import greeting_of
from typer.testing import CliRunner

PROGRAM = Path(__file__).with_name("serve_with_fake.py")
ASK = [{"role": "user", "content": "a question that takes a while to repeat, token by token"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("serve") / "mine")


class Served:
    def __init__(self, process: subprocess.Popen, greeting: str) -> None:
        self.process, self.greeting = process, greeting
        self.url = re.search(r"http://\S+/v1", greeting)[0]
        self.client = openai.OpenAI(base_url=self.url, api_key="none", max_retries=0, timeout=20)

    def end(self, number: int, seconds: float = 15) -> tuple[int, float, str]:
        """Exit code, seconds that it took, and standard error."""
        started = time.monotonic()
        self.process.send_signal(number)
        _, errors = self.process.communicate(timeout=seconds)
        return self.process.returncode, time.monotonic() - started, errors


@contextlib.contextmanager
def served(*arguments: str, token_s: float = 0.0, port: int = 0) -> Iterator[Served]:
    environment = {**os.environ, "FAKE_TOKEN_S": str(token_s)}
    command = [sys.executable, str(PROGRAM), "serve", *arguments, "--port", str(port)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, **pipes) as process:
        try:
            greeting = greeting_of(process)
            yield Served(process, greeting)
        finally:
            process.kill()


def test_greeting_a_pasted_line_and_ctrl_c(folder):
    with served(str(folder), "--weights", "int8", "--policy", "chunked_fcfs", "--option", "kv_tokens=320") as server:
        assert server.greeting.startswith("mine: 7 experts, int8, context 4096, policy chunked_fcfs\n")
        assert "\ndevice cpu, threads 0, kv_pages 20\n" in server.greeting
        if not shutil.which("curl"):
            pytest.skip("no curl")
        line = next(line for line in server.greeting.splitlines() if line.startswith("curl "))
        pasted = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=30)
        assert '"finish_reason":"length"' in pasted.stdout, pasted
        code, seconds, errors = server.end(signal.SIGINT)
        assert code == 0 and seconds < 10  # 2 s on an idle machine; a busy one must not fail the test
        assert errors == "imported: []\n"


def test_a_dense_folder_is_served_with_a_note(folder, tmp_path):
    with served(str(make_folder(tmp_path / "dense")), "--name", "other") as server:
        assert server.greeting.startswith("other: dense,")
        assert f"outrider refactor {tmp_path / 'dense'}" in server.greeting
        assert server.client.models.list().data[0].id == "other"


def test_termination_finishes_what_runs(folder):
    with served(str(folder), "--tpot-goal-ms", "50", token_s=0.01) as server:
        assert ", tpot_goal_ms 50\n" in server.greeting
        stream = server.client.chat.completions.create(model="mine", messages=ASK, stream=True, temperature=0)
        next(stream)
        server.process.send_signal(signal.SIGTERM)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
        assert "token by token" in text
        code, _, errors = server.end(signal.SIGCONT)
        assert code == 0 and errors == "imported: []\n"


def test_a_second_signal_ends_at_once(folder):
    with served(str(folder), token_s=0.5) as server:
        stream = server.client.chat.completions.create(model="mine", messages=ASK, stream=True)
        next(stream)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        assert server.process.poll() is None
        code, seconds, _ = server.end(signal.SIGTERM)
        assert code == 0 and seconds < 4
        with pytest.raises(openai.APIError, match="ended the request"):
            list(stream)


def _fails(*arguments: str) -> str:
    done = CliRunner().invoke(cli.app, ["serve", *arguments])
    assert (done.exit_code, done.stdout) == (2, ""), done.output
    assert done.stderr.startswith("outrider: error E_") and done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def test_one_clear_error(folder, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert f"127.0.0.1:{port}: address: found another program" in _fails(str(folder), "--port", str(port))
    assert "--api-keys" in _fails(str(folder), "--host", "0.0.0.0")
    assert "config.json" in _fails(str(tmp_path / "nothing"))
    for option in ("kv_tokens", "kv_tokens=many", "=3", "a b=3"):
        assert "E_OPTION" in _fails(str(folder), "--option", option)
    assert "E_KEYS" in _fails(str(folder), "--api-keys", str(tmp_path / "none"))
