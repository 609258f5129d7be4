"""The serving engine from Python, on tiny random models: its texts are those of `generate`, whatever else runs."""

import math
import select
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from model_fixtures import SIZES, make_model, some_ids
from outrider import _core
from test_serve_cpu import ROUTERS, VARIANTS, add_experts

WAIT_S = 60.0
EVENT_KEYS = {
    *("stream", "tokens", "experts", "logprobs", "finish", "error"),
    *("prompt_tokens", "cached_tokens", "written_tokens"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("routed")
    make_model(VARIANTS["llama"], path)
    add_experts(path, ROUTERS["own"], experts=5, tau=0.1)
    return path


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("dense")
    make_model(VARIANTS["qwen2-window"], path)
    return path


def open_engine(folder: Path, **options) -> _core.ServeEngine:
    sizes = {"threads": 2, "kv_tokens": 1024, "prefill_tokens": 96, "decode_tokens": 8, "self_check": True}
    return _core.ServeEngine(str(folder), **(sizes | options))


def collect(engine: _core.ServeEngine, streams: int) -> dict[int, dict]:
    """Whole streams by number: the last event of each, with tokens, experts and logprobs of all its events."""
    whole: dict[int, dict] = {}
    left, end = streams, time.monotonic() + WAIT_S
    while left and time.monotonic() < end:
        select.select([engine.event_fd], [], [], 1.0)
        for event in engine.poll(4):
            assert set(event) == EVENT_KEYS
            before = whole.get(event["stream"], {"tokens": [], "experts": [], "logprobs": []})
            whole[event["stream"]] = event | {k: before[k] + event[k] for k in before if isinstance(before[k], list)}
            left -= event["finish"] is not None
    assert left == 0
    return whole


def ask(engine: _core.ServeEngine, prompt: list[int], **params) -> dict:
    stream = engine.submit(prompt, **params)
    return collect(engine, 1)[stream]


def prompts() -> list[list[int]]:
    rows = some_ids(7, 70).tolist()
    lengths = [1, 5, 16, 33, 47, 60, 70]
    shared = rows[0][:20]
    return [(shared + row)[:length] for row, length in zip(rows, lengths, strict=True)]


def requests() -> list[tuple[list[int], dict]]:
    out = []
    for number, prompt in enumerate(prompts()):
        sampling = {"temperature": 1.5, "top_k": 40, "top_p": 0.9, "seed": number} if number % 2 else {}
        out.append((prompt, {"max_tokens": 20, **sampling}))
    return out


def served(folder: Path, **options) -> list[dict]:
    engine = open_engine(folder, **options)
    streams = [engine.submit(prompt, **params) for prompt, params in requests()]
    whole = collect(engine, len(streams))
    assert engine.wait_idle(WAIT_S)
    stats = engine.stats()
    engine.close()
    assert (stats["first_violation"], stats["plan_mismatches"], stats["unplanned_tokens"]) == ("", 0, 0)
    assert stats["kv_pages_used"] == 0 and stats["open_streams"] == 0
    return [whole[stream] for stream in streams]


@pytest.mark.parametrize("kind", ["folder", "dense"])
def test_texts_are_those_of_generate(kind: str, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(kind)
    model = _core.Model.load_routed(str(path)) if kind == "folder" else _core.Model.load(str(path))
    for (prompt, params), found in zip(requests(), served(path), strict=True):
        expected: list[int] = []
        sampling = {k: v for k, v in params.items() if k != "max_tokens"}
        model.generate(prompt, expected.append, params["max_tokens"], **sampling)
        assert found["tokens"] == expected
        assert found["finish"] == "length" and found["error"] == ""
        assert (found["prompt_tokens"], found["written_tokens"]) == (len(prompt), 20)
        assert len(found["experts"]) == (len(prompt) + 20 if kind == "folder" else 0)


def test_texts_do_not_depend_on_how_they_are_served(folder: Path) -> None:
    def texts(**options) -> list[tuple]:
        return [(text["tokens"], text["experts"]) for text in served(folder, **options)]

    alone = texts(running_max=1, prefix_cache=False, threads=1)
    for policy in ("outrider", "chunked_fcfs", "decode_first", "prefill_first", "readme_greedy"):
        assert texts(policy=policy) == alone
    assert texts(prefill_tokens=3, decode_tokens=2, distinct_experts=2, age_max=4) == alone
    assert texts(kv_tokens=112, text_tokens_max=96) == alone  # too little for all: some start over
    assert texts(weight_format="int8") == texts(weight_format="int8", prefill_tokens=5, running_max=2)


@pytest.fixture
def engine(folder: Path) -> Iterator[_core.ServeEngine]:
    engine = open_engine(folder)
    yield engine
    engine.close()


def test_log_probabilities_of_prompt_and_text(engine: _core.ServeEngine, folder: Path) -> None:
    prompt = prompts()[3]
    found = ask(engine, prompt, max_tokens=3, logprobs=2, echo_logprobs=True)
    text = prompt + found["tokens"]
    model = _core.Model.load_routed(str(folder))
    logits = model.logits(some_ids(1, 1).new_tensor([text[:-1]]))[0]
    expected = logits.double().log_softmax(-1)
    assert [row[0] for row in found["logprobs"]] == text[1:]
    for place, (token, logprob, top) in enumerate(found["logprobs"]):
        assert math.isclose(logprob, expected[place, token].item(), abs_tol=1e-3)
        assert [token for token, _ in top] == expected[place].topk(2).indices.tolist()


def test_a_stop_id_ends_the_text(engine: _core.ServeEngine) -> None:
    prompt = prompts()[2]
    whole = ask(engine, prompt, max_tokens=20)["tokens"]
    stop = next(token for place, token in enumerate(whole) if token not in whole[:place] and place > 0)
    found = ask(engine, prompt, max_tokens=20, stop_ids=[stop])
    assert found["finish"] == "stop"
    assert found["tokens"] == whole[: whole.index(stop)]
    assert found["cached_tokens"] == 0 and len(prompt) == 16  # one page, whose last token has to run


def test_a_prefix_is_found(engine: _core.ServeEngine) -> None:
    prompt = prompts()[5]
    first, second = (ask(engine, prompt, max_tokens=5) for _ in range(2))
    assert (first["cached_tokens"], second["cached_tokens"]) == (0, 48)
    assert second["tokens"] == first["tokens"]


def test_what_is_refused_has_a_code(engine: _core.ServeEngine) -> None:
    def code(prompt: list[int], **params) -> tuple[str, float]:
        with pytest.raises(_core.ServeRejected) as caught:
            engine.submit(prompt, **params)
        assert caught.value.code in str(caught.value)
        return caught.value.code, caught.value.retry_after_s

    context = SIZES["max_position_embeddings"]
    assert engine.info["context"] == context
    assert code([1] * context) == ("E_CONTEXT", 0)
    assert code([1], max_tokens=context) == ("E_CONTEXT", 0)
    assert code([]) == ("E_REQUEST", 0)
    assert code([SIZES["vocab_size"]]) == ("E_REQUEST", 0)
    assert code([1], temperature=-1) == ("E_REQUEST", 0)
    engine.drain()
    assert code([1]) == ("E_DRAINING", 0)
    assert engine.stats()["rejected"] == {"E_CONTEXT": 2, "E_REQUEST": 3, "E_DRAINING": 1}


def test_caps_are_told_as_busy(folder: Path) -> None:
    engine = open_engine(folder, running_max=1, queued_max=1)
    with pytest.raises(_core.ServeRejected) as caught:
        for _ in range(100):
            engine.submit([1, 2, 3], max_tokens=100)
    assert caught.value.code == "E_BUSY" and caught.value.retry_after_s >= 1
    engine.close()


def test_cancel_deadline_and_close(folder: Path) -> None:
    engine = open_engine(folder, running_max=1)
    running = engine.submit([1, 2], max_tokens=120)
    cancelled = engine.submit([1, 2], max_tokens=120)
    late = engine.submit([1, 2], max_tokens=120, deadline_ms=1)
    engine.cancel(cancelled)
    engine.cancel(12345)
    whole = collect(engine, 3)
    assert whole[cancelled]["finish"] == "cancelled" and whole[cancelled]["tokens"] == []
    assert whole[late]["finish"] == "deadline"
    assert whole[running]["finish"] == "length"
    streams = [engine.submit([1, 2], max_tokens=120) for _ in range(3)]
    engine.close()
    engine.close()
    assert {event["finish"] for event in collect(engine, 3).values()} <= {"cancelled", "length"}
    assert len(streams) == 3 and engine.wait_idle(0)


def test_options_are_honoured_or_refused(folder: Path) -> None:
    info = open_engine(folder, queued_max=7, age_max=3).info
    assert (info["queued_max"], info["age_max"], info["policy"], info["experts"]) == (7, 3, "outrider", 5)
    assert info["vocab"] == SIZES["vocab_size"] and info["kv_pages"] == 64 and info["weight_bytes"] > 0
    with pytest.raises(TypeError, match="unknown keyword speed"):
        open_engine(folder, speed=2)
    with_goals = open_engine(folder, tpot_goal_ms=50, ttft_goal_ms=900, end_late_first=1, policy="chunked_fcfs")
    assert (with_goals.info["tpot_goal_ms"], with_goals.info["end_late_first"]) == (50, 1)
    assert (with_goals.stats()["ttft_goal_s"], with_goals.stats()["tpot_goal_s"]) == (0.9, 0.05)
    for options in (
        {"tpot_goal_ms": -1},
        {"end_late_first": 1},
        {"policy": "best"},
        {"weight_format": "q4"},
        {"text_tokens_max": 4096},
        {"running_max": 0},
    ):
        with pytest.raises(ValueError, match="error E_OPTION"):
            open_engine(folder, **options)
    with pytest.raises(ValueError, match=r"end_late_first: .* expected a ttft_goal_ms"):
        open_engine(folder, end_late_first=1)
