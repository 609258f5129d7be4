"""The server over the real engine: what it writes is what the model's own loop writes."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from chat_fixtures import make_chat_model
from outrider import _core
from outrider.serve import start
from outrider.serve.server import listen, make_server
from serve_fixtures import Running, wait_for

QUESTIONS = ["what is the capital of this", "and that", "the other thing in other words", "be brief"]
TOKENS = 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_chat_model(tmp_path_factory.mktemp("serve") / "chat", width=64, heads=4)


@pytest.fixture(scope="module")
def server(folder):
    options = start.ServeOptions(model=folder, threads=1, name="tiny", engine={"kv_tokens": 2048})
    inputs = start.read_inputs(options)
    engine, rejected = start.open_engine(options)
    state = start.make_state(options, inputs, engine, rejected)
    with listen("127.0.0.1", 0) as sock:
        server = make_server(state)
        thread = threading.Thread(target=server.run, args=([sock],))
        thread.start()
        wait_for(lambda: server.started)
        yield Running(engine, state, sock.getsockname()[1])
        server.should_exit = True
        thread.join(15)
    assert engine.wait_idle(5)
    stats = engine.stats()
    engine.close()
    assert stats["kv_pages_used"] == stats["running"] == stats["invariant_violations"] == 0


def _expected(server, model, question):
    ids = server.state.tokenizer.chat_ids([{"role": "user", "content": question}])
    made = []
    model.generate(ids, made.append, TOKENS, model.end_ids)
    return server.state.tokenizer.decode(made)


def test_greedy_answers_together_as_alone(server, folder):
    model = _core.Model.load(str(folder), "float32")
    expected = [_expected(server, model, question) for question in QUESTIONS]

    def ask(question):
        messages = [{"role": "user", "content": question}]
        options = {"temperature": 0, "max_tokens": TOKENS, "stream": True}
        chunks = server.client().chat.completions.create(model="tiny", messages=messages, **options)
        return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)

    with ThreadPoolExecutor(4) as together:
        assert list(together.map(ask, QUESTIONS)) == expected
    assert [ask(question) for question in QUESTIONS] == expected


def test_seeds_repeat_and_differ(server):
    ask = {"model": "tiny", "prompt": "what is", "max_tokens": TOKENS, "n": 3, "seed": 5, "temperature": 1.5}
    first, second = ([choice.text for choice in server.client().completions.create(**ask).choices] for _ in range(2))
    assert first == second and len(set(first)) == 3


def test_log_probabilities_of_a_prompt(server):
    ids = server.state.tokenizer.encode("what is the capital of this")
    ask = {"model": "tiny", "max_tokens": 1, "logprobs": 2, "temperature": 0, "echo": True}
    whole = server.client().completions.create(prompt=[ids], **ask).choices[0].logprobs
    assert whole.token_logprobs[0] is None and len(whole.token_logprobs) == len(ids) + 1
    assert all(value <= 0 for value in whole.token_logprobs[1:])
    assert whole.token_logprobs[-1] == max(whole.top_logprobs[-1].values())
    part = server.client().completions.create(prompt=[ids[:4]], **ask).choices[0].logprobs
    assert part.token_logprobs[1:4] == pytest.approx(whole.token_logprobs[1:4], abs=1e-5)


def test_limits_of_the_real_engine(server):
    status, error = server.error("/v1/completions", {"prompt": [5] * 300})
    assert (status, error["code"], error["param"]) == (400, "context_length_exceeded", "prompt")
    assert error["message"].startswith("prompt: found 300 tokens")
    status, error = server.error("/v1/completions", {"prompt": [5], "max_tokens": 9000})
    assert (status, error["code"], error["param"]) == (400, "context_length_exceeded", "max_tokens")
    text = server.request("GET", "/metrics")[2].decode()
    for name in ("outrider_step_seconds_bucket", "outrider_kv_pages", "outrider_tokens_total", "outrider_weight_bytes"):
        assert name in text
    assert 'outrider_rejected_total{reason="E_CONTEXT"} 2.0' in text
