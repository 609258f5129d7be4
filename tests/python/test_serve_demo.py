"""The demo asks a real server process, over the double of the engine."""

import sys
from pathlib import Path

import pytest
from fake_engine import FakeEngine, ServeRejected, make_folder
from outrider.demo import policies, serve
from outrider.refactor.errors import InputError
from outrider.serve import start
from serve_fixtures import running

PROGRAM = Path(__file__).with_name("serve_with_fake.py")


def test_three_questions(tmp_path, monkeypatch, capfd):
    folder = make_folder(tmp_path / "m")
    monkeypatch.setattr(serve, "demo_model", lambda _: serve.DemoModel(folder))
    assert serve.run(tmp_path, (sys.executable, str(PROGRAM))) == 0
    said = capfd.readouterr().out
    for question in serve.QUESTIONS:
        assert said.count(question) == 2  # asked, and repeated by the double
    assert said.count("tokens/s") == 3 and "7 experts, first after" in said and "exit code 0" in said


def test_a_model_without_a_chat_template(tmp_path, capfd):
    with running(make_folder(tmp_path / "m", None), experts=0) as found:
        assert serve.ask(f"{found.url}/v1", "What is this?") == {"written": 13, "experts": 0}
    assert "13 tokens, first after" in capfd.readouterr().out


def test_a_server_that_does_not_start(tmp_path, capfd):
    command = [sys.executable, str(PROGRAM), "serve", str(tmp_path / "nothing")]
    with pytest.raises(InputError, match="E_SERVE"), serve.server(command):
        pass
    assert "E_READ" in capfd.readouterr().err


def test_the_policies_say_their_goals_and_their_spread(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(policies, "small_model", lambda _: make_folder(tmp_path / "m"))
    monkeypatch.setattr(policies, "ROWS", 6)
    monkeypatch.setattr(start, "load_model", lambda options: None)
    monkeypatch.setattr(start, "open_engine", lambda options: (FakeEngine(script=lambda ids: ids * 99), ServeRejected))
    assert policies.run(tmp_path) == 0
    said = capsys.readouterr().out
    assert f"{policies.FACTOR:g} times the medians of chunked_fcfs at 0.3" in said and "Below its lowest run" in said
    assert all(f"| {name} | " in said for name in policies.compare.POLICIES) and said.count(" to ") > 25
