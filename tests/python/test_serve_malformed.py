"""Bytes that are nearly HTTP, JSON or UTF-8: an answer that blames the client, or none; the server goes on."""

import contextlib
import json

import pytest
from fake_engine import make_folder
from hypothesis import given, settings
from hypothesis import strategies as st
from outrider.serve import body, protocol
from serve_fixtures import running, wait_for

CHAT, PLAIN = "/v1/chat/completions", "/v1/completions"
CHAT_BODY = {
    "model": "tiny",
    "messages": [{"role": "user", "content": "Wö?"}],
    "max_tokens": 3,
    "stop": ["a", "\u00e9"],
}
PLAIN_BODY = {"prompt": ["a", "b"], "max_tokens": 2, "logprobs": 1, "echo": True, "outrider": {"priority": 1}}
FEW, MANY = 150, 100_000
EFFORTS = [FEW, pytest.param(MANY, marks=[pytest.mark.long, pytest.mark.timeout(7200)])]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(protocol.BoundedProtocol, "header_read_s", 0.1)
        patch.setattr(body, "BODY_READ_S", 0.1)
        with running(make_folder(tmp_path_factory.mktemp("serve") / "m"), context=300) as found:
            yield found


def _raw(path: str, raw: bytes) -> bytes:
    lines = (
        f"POST {path} HTTP/1.1",
        "Host: 127.0.0.1",
        "Content-Type: application/json",
        f"Content-Length: {len(raw)}",
    )
    return "".join(f"{line}\r\n" for line in (*lines, "")).encode() + raw


@st.composite
def mutated(draw, whole: bytes) -> bytes:
    """`whole` with a few bytes replaced, removed, doubled or inserted."""
    text = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(text)))
        upto = min(len(text), at + draw(st.integers(0, 6)))
        new = draw(st.sampled_from([b"", bytes(text[at:upto]) * 2, b"\r\n", b"\x00", b"\xff", b"\xed\xa0\xbd"]))
        text[at:upto] = draw(st.one_of(st.just(new), st.binary(max_size=4)))
    return bytes(text)


def _answers(server, raw: bytes) -> bytes:
    """All that comes until the server closes or has nothing more to say."""
    answer = b""
    with contextlib.suppress(ConnectionError, TimeoutError), server.connect() as connection:
        connection.settimeout(0.3)
        connection.sendall(raw)
        while part := connection.recv(65536):
            answer += part
            if b"\r\n\r\n" in answer:
                connection.settimeout(0.02)
    return answer


def _lives(server) -> None:
    assert server.request("GET", "/health")[0] == 200
    wait_for(lambda: server.engine.stats()["running"] == 0 and server.state.hub.open_streams == 0)


def _repeat(check, strategy, examples: int) -> None:
    settings(max_examples=examples, deadline=None)(given(strategy)(check))()


@pytest.mark.parametrize("examples", EFFORTS)
def test_nearly_http(server, examples):
    whole = _raw(CHAT, json.dumps(CHAT_BODY, ensure_ascii=False).encode())

    def check(raw: bytes) -> None:
        answer = _answers(server, raw)
        assert answer == b"" or answer.startswith((b"HTTP/1.1 2", b"HTTP/1.1 4")), (raw, answer)

    _repeat(check, mutated(whole) | st.binary(max_size=80), examples)
    _lives(server)


@pytest.mark.parametrize("examples", EFFORTS)
@pytest.mark.parametrize(("path", "good"), [(CHAT, CHAT_BODY), (PLAIN, PLAIN_BODY)], ids=["chat", "completions"])
def test_nearly_json_and_nearly_utf8(server, path, good, examples):
    whole = json.dumps(good, ensure_ascii=False).encode()

    def check(raw: bytes) -> None:
        status, headers, answer = server.request("POST", path, raw)
        assert status in (200, 400, 404, 413), (raw, answer)
        if status != 200:
            error = json.loads(answer)["error"]
            assert headers["content-type"] == "application/json" and error["message"] and error["code"]
            assert error["type"] in ("invalid_request_error", "not_found_error")

    _repeat(check, mutated(whole) | st.binary(max_size=80), examples)
    _lives(server)
