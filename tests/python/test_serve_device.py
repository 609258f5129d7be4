"""Serving on a device: the GPU executor in plain operators drives the whole server, and what cannot be is told."""

import json
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fake_engine import make_folder
from model_fixtures import make_model
from outrider import _core
from outrider.cli import app
from outrider.refactor.errors import InputError
from outrider.serve import start
from serve_artifact import make_artifact
from serve_fixtures import running, running_over, wait_for
from test_serve_cpu import VARIANTS
from typer.testing import CliRunner

PROMPTS = ["what is the capital", "and that of the other one, in other words", "b", "x" * 45]
TOKENS = 24
TIE_NATS = 1e-3  # the forms differ in the last bits of fp32 only
SIZES = {"kv_tokens": 1024, "prefill_tokens": 96, "decode_tokens": 8, "self_check": True}


@pytest.fixture(scope="module", params=["routed", "dense"])
def folder(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("device") / request.param
    if request.param == "routed":
        return make_artifact(path)
    make_folder(path)
    config = VARIANTS["qwen2-window"]
    make_model(type(config)(**{**config.to_dict(), "vocab_size": 259}), path)
    return path


def serving(folder: Path, device: str, **engine):
    options = start.ServeOptions(model=folder, device=device, threads=1, engine=SIZES | engine)
    native, rejected = start.open_engine(options)
    return running_over(folder, native, rejected)


def ask(server, prompt: str, **more):
    about = {"model": "tiny", "prompt": prompt, "max_tokens": TOKENS, "temperature": 0, "logprobs": 2}
    return server.client().completions.create(**about, **more).choices[0]


def streamed(server, prompt: str) -> str:
    about = {"model": "tiny", "prompt": prompt, "max_tokens": TOKENS, "temperature": 0, "stream": True}
    return "".join(chunk.choices[0].text for chunk in server.client().completions.create(**about))


def agree_until_a_tie(found, expected) -> int:
    """Tokens compared: all, or those in front of a place where the CPU's two best are as good as equal."""
    for place, (mine, theirs) in enumerate(zip(found.logprobs.tokens, expected.logprobs.tokens, strict=False)):
        best = sorted(expected.logprobs.top_logprobs[place].values(), reverse=True)
        if len(best) > 1 and best[0] - best[1] < TIE_NATS:
            return place
        assert mine == theirs, f"token {place}"
        assert found.logprobs.token_logprobs[place] == pytest.approx(expected.logprobs.token_logprobs[place], abs=1e-3)
    assert found.text == expected.text and found.finish_reason == expected.finish_reason
    return len(expected.logprobs.tokens)


def test_a_server_on_the_reference_device_writes_what_the_cpu_writes(folder):
    with serving(folder, "cpu") as server:
        expected = [ask(server, prompt) for prompt in PROMPTS]
    with serving(folder, "reference") as server:
        assert server.state.info["device"] == "reference" and server.state.info["weight_format"] == "float32"
        with ThreadPoolExecutor(4) as together:
            beside = list(together.map(lambda prompt: ask(server, prompt), PROMPTS))
            streams = list(together.map(lambda prompt: streamed(server, prompt), PROMPTS))
        compared = [agree_until_a_tie(*pair) for pair in zip(beside, expected, strict=True)]
        assert sum(compared) > len(PROMPTS) * TOKENS // 2
        assert streams == [choice.text for choice in beside]
        stats = server.engine.stats()
        assert stats["prefix_hit_tokens"] > 0, "the same prompts a second time"
        assert (stats["first_violation"], stats["device_error"]) == ("", "")
        assert b'device="reference"' in server.request("GET", "/metrics")[2]
        assert json.loads(server.request("GET", "/health")[2]) == {"status": "ok", "device": "reference"}
        assert json.loads(server.request("GET", "/v1/models")[2])["data"][0]["outrider"]["device"] == "reference"
        assert "\ndevice reference, threads 1, " in start.greeting(start.ServeOptions(folder), server.state, 1)


@pytest.mark.parametrize(
    "engine",
    [
        {"prefill_tokens": 5, "decode_tokens": 2},
        {"running_max": 1, "prefix_cache": False},
        {"kv_tokens": 96, "text_tokens_max": 96},  # too little for all: some start over
    ],
)
def test_texts_do_not_depend_on_chunks_neighbours_or_preemption(folder, engine):
    def texts(**more) -> list[str]:
        with serving(folder, "reference", **more) as server, ThreadPoolExecutor(4) as together:
            return list(together.map(lambda prompt: ask(server, prompt).text, PROMPTS))

    assert texts(**engine) == texts()


def test_bfloat16_on_the_reference_device(folder):
    options = start.ServeOptions(model=folder, device="reference", weights="bfloat16", engine=SIZES)
    engine, rejected = start.open_engine(options)
    with running_over(folder, engine, rejected) as server:
        assert server.state.info["weight_format"] == "bfloat16"
        assert len(ask(server, PROMPTS[0]).logprobs.tokens) > 0


def test_pages_are_told_and_have_a_size(folder):
    def info(**options):
        engine = _core.ServeEngine(str(folder), threads=1, **options)
        found = engine.info
        engine.close()
        return found

    for device in ("cpu", "reference"):
        found = info(device=device)
        assert (found["device"], found["kv_tokens"], found["kv_pages"]) == (device, 16384, 1024)
        assert found["route_tokens"] == (32768 if found["experts"] else 0)
        assert info(device=device, kv_tokens=320)["kv_pages"] == 20


@pytest.mark.parametrize("device", ["cpu", "reference"])
def test_engines_share_a_model_that_was_read_once(folder, device):
    """One after the other and at the same time, each with its own policy and pages."""
    options = start.ServeOptions(model=folder, device=device, threads=1, engine=SIZES)
    expected = _texts([options])[0]
    shared = replace(options, loaded=start.load_model(options))
    smaller = replace(shared, policy="chunked_fcfs", engine=SIZES | {"kv_tokens": 256})
    assert _texts([shared]) == [expected]
    assert _texts([smaller, shared]) == [expected, expected]
    with pytest.raises(InputError, match="E_OPTION"):
        start.open_engine(replace(shared, engine={"kv_token": 3}))


def _texts(several: list[start.ServeOptions]) -> list[tuple]:
    """What each engine writes while all are open, and on what."""
    engines = [start.open_engine(options)[0] for options in several]
    try:
        for engine in engines:
            engine.submit(list(range(5, 30)), max_tokens=6)
        found: list[list[int]] = [[] for _ in engines]
        while any(len(tokens) < 6 for tokens in found):
            for tokens, engine in zip(found, engines, strict=True):
                tokens += [token for event in engine.poll() for token in event["tokens"]]
        return [(e.info["device"], e.info["weight_format"], t) for e, t in zip(engines, found, strict=True)]
    finally:
        for engine in engines:
            engine.close()


def test_what_no_device_does_is_told_before_anything_is_read(folder):
    def error(**options) -> str:
        with pytest.raises(ValueError, match="error E_") as caught:
            _core.ServeEngine(str(folder), **options)
        return str(caught.value)

    assert "E_OPTION: device: found tpu, expected cpu or cuda" in error(device="tpu")
    with pytest.raises(ValueError, match="E_OPTION: device: found tpu"):
        _core.ServeModel(str(folder), device="tpu")
    assert "E_OPTION: weights: found int8, expected bf16" in error(device="reference", weight_format="int8")
    assert "E_OPTION: weights: found f32, expected bf16" in error(device="cuda", weight_format="float32")
    with pytest.raises(InputError, match="--device"):
        start.ServeOptions(model=folder, device="reference").check()
    with pytest.raises(InputError, match="--weights"):
        start.ServeOptions(model=folder, device="cuda", weights="int8").check()


@pytest.mark.parametrize("command", [["serve"], ["bench", "serve", "--out", "replay.json"]])
def test_one_clear_error_without_a_cuda_device(folder, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if torch.cuda.is_available():
        pytest.skip("there is one")
    for device, says in (("cuda", "E_CUDA: device cuda: found"), ("reference", "--device: found reference")):
        port = ["--port", "0"] if command == ["serve"] else []
        done = CliRunner().invoke(app, [*command, str(folder), "--device", device, *port])
        assert done.exit_code == InputError.exit_code
        assert re.search(says, done.stderr) and done.stderr.count("\n") == 1, done.stderr
    assert not (tmp_path / "replay.json").exists()


def test_a_lost_device_ends_readiness_and_is_told(tmp_path, caplog):
    make_folder(tmp_path / "tiny")
    with running(tmp_path / "tiny") as server:
        assert server.request("GET", "/ready")[0] == 200
        server.engine.device_error = "E_DEVICE: a pass failed: CUDA error"
        status, _, body = server.request("GET", "/ready")
        assert (status, json.loads(body)) == (503, {"ready": False, "reason": "device lost"})
        status, _, body = server.request("GET", "/health")
        assert (status, json.loads(body)["status"]) == (503, "device lost")
        status, error = server.error("/v1/completions", {"prompt": "a"})
        assert (status, error["code"]) == (503, "device_lost")
        wait_for(lambda: "a pass failed" in caplog.text)
