"""What a request may not ask, and how it is told; who may ask."""

import gzip
import hashlib
import json
import os

import openai
import pytest
from fake_engine import make_folder
from hypothesis import given, settings
from hypothesis import strategies as st
from outrider.refactor.errors import InputError
from outrider.serve import body, schema
from outrider.serve.auth import Keys
from outrider.serve.errors import ApiError
from outrider.serve.start import ServeOptions
from serve_fixtures import running, wait_for

ASK = [{"role": "user", "content": "Where?"}]
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("serve") / "m")


@pytest.fixture(scope="module")
def server(folder):
    with running(folder, context=200) as found:
        yield found


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"foo": 1}, "foo"),
        ({"foo": None}, "foo"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]}, "messages.0.content"),
        ({"temperature": 2.5}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_tokens": 5, "max_completion_tokens": 5}, "max_tokens"),
        ({"n": 0}, "n"),
        ({"n": 1000}, "n"),
        ({"stop": ""}, "stop"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"stop": 3}, "stop"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"outrider": {"expert": True}}, "outrider.expert"),
        ({"outrider": {"experts": True}}, "outrider.experts"),
        ({"seed": 1 << 70}, "seed"),
        ({"top_k": 1 << 70}, "top_k"),
        ({"top_k": -2}, "top_k"),
        ({"min_p": 0.1}, "min_p"),
        ({"ignore_eos": True}, "ignore_eos"),
    ],
)
def test_fields_are_refused_by_name(server, change, param):
    status, error = server.error(CHAT, {"model": "tiny", "messages": ASK, **change})
    assert (status, error["param"], error["type"]) == (400, param, "invalid_request_error")
    assert param in error["message"] and error["code"]


def test_fields_that_change_nothing_are_taken(server):
    neutral = {"tools": [], "tool_choice": "auto", "response_format": {"type": "text"}, "logit_bias": {}, "n": None}
    neutral |= {"top_k": -1, "min_p": 0.0, "ignore_eos": False, "reasoning_effort": "none"}
    harmless = {"user": "u", "store": False, "metadata": {}, "service_tier": "auto", "parallel_tool_calls": True}
    sent_back = {"role": "assistant", "content": "x", "refusal": None, "tool_calls": None, "audio": None}
    parts = {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}
    ask = {"messages": [sent_back, parts], "max_tokens": 2, **neutral, **harmless}
    assert server.request("POST", CHAT, ask)[0] == 200


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": [1, 300]}, "prompt"),
        ({"prompt": [1, -3]}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": ["a"] * 129}, "prompt"),
        ({"prompt": ["a"] * 100, "n": 2}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"best_of": 4}, "best_of"),
        ({"suffix": "x"}, "suffix"),
        ({"logprobs": True}, "logprobs"),
    ],
)
def test_fields_of_completions_are_refused_by_name(server, change, param):
    status, error = server.error("/v1/completions", {"prompt": "a", **change})
    assert (status, error["param"]) == (400, param)


@pytest.mark.parametrize(
    ("path", "change", "says"),
    [
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "type: input should be 'text'"),
        (
            CHAT,
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "x", "y": 1}]}]},
            "y is not a known",
        ),
        (CHAT, {"messages": [{"role": "user", "content": None}]}, "valid string or input should be a valid list"),
        (CHAT, {"stop": ["a"] * 17}, "at most 16 items"),
        ("/v1/completions", {"prompt": ["a"] * 129}, "at most 128 items"),
        ("/v1/completions", {"prompt": [1, -3]}, "greater than or equal to 0"),
    ],
)
def test_a_field_of_several_kinds_is_told_by_the_kind_that_was_meant(server, path, change, says):
    asked = {"messages": ASK} if path == CHAT else {}
    status, error = server.error(path, asked | change)
    assert status == 400 and says in error["message"]


def test_a_prompt_over_the_context_is_told_as_openai_does(server):
    long = "x" * 300
    for path, field in (
        (CHAT, {"messages": [{"role": "user", "content": long}]}),
        ("/v1/completions", {"prompt": long}),
    ):
        status, error = server.error(path, field)
        assert (status, error["code"], error["param"]) == (400, "context_length_exceeded", next(iter(field)))


def test_methods_that_a_route_does_not_have(server):
    for method in ("GET", "PUT", "OPTIONS"):
        status, headers, raw = server.request(method, CHAT)
        assert (status, headers["allow"]) == (405, "POST") and json.loads(raw)["error"]["type"]
    assert set(server.request("POST", "/v1/models", {})[1]["allow"].split(", ")) == {"GET", "HEAD"}


def test_what_may_be_read_has_a_head(server):
    for path in ("/", "/health", "/ready", "/metrics", "/v1/models", "/v1/models/tiny"):
        (status, headers, raw), whole = server.request("HEAD", path), server.request("GET", path)
        assert (status, raw) == (200, b"") and headers["content-type"] == whole[1]["content-type"]


def test_compressed_bodies_are_refused_by_name(server):
    raw = json.dumps({"messages": ASK, "max_tokens": 2}).encode()
    status, error = server.error(CHAT, gzip.compress(raw), Content_Encoding="gzip")
    assert (status, error["param"]) == (415, "Content-Encoding")
    assert server.request("POST", CHAT, raw, Content_Encoding="identity")[0] == 200


@pytest.mark.parametrize(
    ("raw", "status", "code"),
    [
        (b"", 400, "invalid_json"),
        (b"{", 400, "invalid_json"),
        (b"[1]", 400, "invalid_json"),
        (b'{"a": NaN}', 400, "invalid_json"),
        (b'{"a": ' + b"9" * 5000 + b"}", 400, "invalid_json"),
        (b'{"a": "\xff"}', 400, "invalid_utf8"),
        (b'{"messages": [{"role": "user", "content": "\\ud83d"}]}', 400, "invalid_utf8"),
        (b"[" * 100_000, 400, "invalid_json"),
        (b'{"a": ' + b"[" * 20 + b"]" * 20 + b"}", 400, "invalid_json"),
        (b" " * (body.BODY_BYTES_MAX + 1), 413, "body_too_large"),
    ],
    ids=lambda value: repr(value[:12]) if isinstance(value, bytes) else None,
)
def test_bodies_that_are_no_request(server, raw, status, code):
    found, error = server.error(CHAT, raw)
    assert (found, error["code"]) == (status, code)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=20,
)
_FIELDS = st.sampled_from([*schema.ChatRequest.model_fields, *schema.CompletionRequest.model_fields, *schema.NEUTRAL])


@given(fields=st.dictionaries(_FIELDS, _JSON, max_size=6))
@settings(max_examples=300, deadline=None)
def test_any_json_is_a_request_or_a_named_error(fields):
    for parse in (schema.parse_chat, schema.parse_completion, schema.parse_tokenize):
        try:
            parse(body.parse_object(json.dumps(fields).encode()))
        except ApiError as error:
            assert error.status == 400 and (error.param or error.code in ("invalid_json", "invalid_utf8"))


@given(raw=st.binary(max_size=60))
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_an_object_or_an_error(raw):
    try:
        assert isinstance(body.parse_object(raw), dict)
    except ApiError as error:
        assert error.status == 400


def test_errors_of_the_client_library(server):
    client = server.client()
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="gpt", messages=ASK)
    assert unknown.value.code == "model_not_found" and unknown.value.param == "model"
    with pytest.raises(openai.BadRequestError) as long:
        client.completions.create(model="tiny", prompt="x" * 300)
    assert long.value.code == "context_length_exceeded"
    assert server.error("/v1/nothing", {})[0] == 404
    assert server.request("GET", CHAT)[0] == 405


def test_deadlines(server):
    body = {"messages": ASK}
    assert server.request("POST", CHAT, body, X_Outrider_Deadline_Ms="5000")[0] == 200
    params = [value for name, value in server.engine.calls if name == "submit"][-1]
    assert params["deadline_ms"] == 5000
    for bad in ("0", "-1", "soon", "1" * 30, "²"):
        status, error = server.error(
            CHAT, body, X_Outrider_Deadline_Ms=bad.encode("latin-1", "ignore").decode("latin-1")
        )
        assert (status, error["param"]) == (400, "X-Outrider-Deadline-Ms")


def test_a_deadline_that_passes(folder):
    with running(folder, token_s=0.05) as server:
        status, _, raw = server.request("POST", CHAT, {"messages": ASK, "outrider": {"deadline_ms": 200}})
        choice = json.loads(raw)["choices"][0]
        assert status == 200 and choice["finish_reason"] == "deadline" and len(choice["message"]["content"]) < 10


def test_too_much_work_is_refused_before_a_stream_opens(folder):
    with running(folder, token_s=0.2, streams_max=2) as server:
        client = server.client()
        open_stream = client.chat.completions.create(model="tiny", messages=ASK, stream=True)
        next(open_stream)
        for stream in (False, True):
            with pytest.raises(openai.RateLimitError) as caught:
                client.chat.completions.create(model="tiny", messages=ASK, n=2, stream=stream)
            assert caught.value.response.headers["retry-after"] == "3" and caught.value.code == "overloaded"
        wait_for(lambda: server.engine.stats()["running"] == 1)  # the first of the two choices was given back
        open_stream.close()
        text = server.request("GET", "/metrics")[2].decode()
        assert 'outrider_requests_total{outcome="rejected"} 2.0' in text
        assert 'outrider_rejected_total{reason="E_BUSY"} 2.0' in text


def test_failures_of_the_engine(folder):
    with running(folder) as server:
        server.engine.fail_after = 3
        with pytest.raises(openai.InternalServerError, match="the executor failed"):
            server.client().chat.completions.create(model="tiny", messages=ASK)
        with pytest.raises(openai.APIError, match="the executor failed"):
            list(server.client().chat.completions.create(model="tiny", messages=ASK, stream=True))


def _keys(path, *lines):
    path.write_text("".join(f"{role} {name} {hashlib.sha256(key.encode()).hexdigest()}\n" for role, name, key in lines))
    return path


def test_keys(folder, tmp_path, caplog):
    path = _keys(tmp_path / "keys", ("user", "bob", "sk-bob"), ("admin", "ann", "sk-ann"))
    with running(folder, keys=path) as server:
        assert server.client("sk-bob").models.list().data[0].id == "tiny"
        for wrong in ("sk-eve", "x"):
            with pytest.raises(openai.AuthenticationError):
                server.client(wrong).models.list()
        assert server.request("GET", "/v1/models")[1]["www-authenticate"] == "Bearer"
        assert [server.request("GET", path)[0] for path in ("/health", "/ready", "/")] == [200] * 3
        assert [server.request("GET", path)[0] for path in ("/metrics", "/admin/stats")] == [401] * 2
        bob, ann = {"Authorization": "Bearer sk-bob"}, {"Authorization": "Bearer sk-ann"}
        assert [server.request("GET", path, **bob)[0] for path in ("/metrics", "/admin/stats")] == [403] * 2
        assert [server.request("GET", path, **ann)[0] for path in ("/metrics", "/admin/stats")] == [200] * 2
        assert server.request("POST", "/admin/drain", **bob)[0] == 403

        _keys(path, ("user", "eve", "sk-eve"))
        os.utime(path, (1, 1))
        assert server.client("sk-eve").models.list().data
        path.write_text("user eve nothing\n")
        assert server.client("sk-eve").models.list().data  # the old keys stay
    assert "the changed API keys are not used" in caplog.text
    assert not any(secret in caplog.text for secret in ("sk-bob", "sk-ann", "sk-eve"))


@pytest.mark.parametrize("text", ["", "# none\n", "user bob\n", "root bob " + "0" * 64, "user bob 12", "user bob zz"])
def test_key_files_that_are_refused(tmp_path, text):
    (tmp_path / "keys").write_text(text)
    with pytest.raises(InputError, match="E_KEYS"):
        Keys(tmp_path / "keys")


def test_without_keys_only_this_machine_asks(server, folder):
    for host in ("0.0.0.0", "192.168.0.7", "::"):
        with pytest.raises(InputError, match="--api-keys"):
            ServeOptions(model=folder, host=host).check()
    ServeOptions(model=folder, host="::1").check()
    assert server.request("GET", "/v1/models", Host="evil.example")[0] == 403
    assert server.request("GET", "/v1/models", Origin="http://evil.example")[0] == 403
    for odd in ("[", "[ 127.0.0.1", "[x]", "127.0.0.1]["):
        assert server.request("GET", "/v1/models", Host=odd)[0] == 403
        assert server.request("GET", "/v1/models", Origin=f"http://{odd}")[0] == 403
    own = server.url.removeprefix("http://")
    assert server.request("GET", "/v1/models", Host=own, Origin=server.url)[0] == 200
