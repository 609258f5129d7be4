"""Clients that leave, stop reading or speak no HTTP; draining; health."""

import asyncio
import contextlib
import json
import socket
import time

import openai
import pytest
from fake_engine import FakeEngine, ServeRejected, make_folder
from outrider.serve import app, chat, hub, protocol, schema, sse, start
from serve_fixtures import running, wait_for, writes
from starlette.requests import Request

ASK = [{"role": "user", "content": "Where?"}]
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("serve") / "m")


def _post(body: dict) -> bytes:
    raw = json.dumps(body).encode()
    return b"POST %s HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n%s" % (CHAT.encode(), len(raw), raw)


def _cancelled(server) -> int:
    return [name for name, _ in server.engine.calls].count("cancel")


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_cancels_its_request(folder, stream):
    with running(folder, token_s=0.02, script=writes(folder, "x" * 3000)) as server:
        with server.connect() as connection:
            connection.sendall(_post({"messages": ASK, "stream": stream, "n": 2}))
            wait_for(lambda: server.engine.stats()["running"] == 2)
        wait_for(lambda: server.engine.stats()["running"] == 0, 3)
        assert _cancelled(server) == 2 and server.state.hub.open_streams == 0
        wait_for(lambda: b'outcome="disconnected"} 1.0' in server.request("GET", "/metrics")[2])


def test_a_reader_is_cancelled_though_an_event_comes_in_the_same_turn_of_the_loop():
    async def one() -> None:
        mailbox = hub.Mailbox(OneStream())
        mailbox.submit(0, [1], {})
        reading = asyncio.create_task(mailbox.next())
        for _ in range(5):  # until it waits
            await asyncio.sleep(0)
        mailbox.put({"stream": 1, "tokens": [5], "finish": None})
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading

    asyncio.run(one())


class OneStream:
    """A hub as far as a mailbox needs one."""

    def submit(self, *_) -> int:
        return 1


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_before_the_first_chunk(folder, stream):
    """Its work ends before it began, so nothing but the response can count it."""

    async def one() -> bytes:
        options = start.ServeOptions(model=folder, name="tiny")
        engine = FakeEngine(token_s=0.02, script=writes(folder, "x" * 3000))
        state = start.make_state(options, start.read_inputs(options), engine, ServeRejected)
        try:
            run = chat.start_chat(state, schema.parse_chat({"messages": ASK, "stream": stream}), [5, 6], {})
            if stream:
                await sse.EventStream(chat.chat_chunks(run), run)({"type": "http"}, _gone, _never)
            else:
                with pytest.raises(sse.ClientGone):
                    await app._answer(Request({"type": "http"}, _gone), run, _begun_never())
            assert [name for name, _ in engine.calls] == ["submit", "cancel"] and state.hub.open_streams == 0
            run.close("stop")  # what ended once is not counted again
            return state.metrics.text()
        finally:
            engine.close()

    text = asyncio.run(one())
    assert b'outrider_requests_total{outcome="disconnected"} 1.0' in text and b'outcome="stop"' not in text


async def _gone() -> dict:
    return {"type": "http.disconnect"}


async def _never(_: dict) -> None:
    await asyncio.Event().wait()


async def _begun_never() -> dict:
    await asyncio.Event().wait()
    return {}


def test_a_client_that_closes_its_stream(folder):
    with running(folder, token_s=0.02, script=writes(folder, "x" * 3000)) as server:
        stream = server.client().chat.completions.create(model="tiny", messages=ASK, stream=True)
        next(stream)
        stream.close()
        wait_for(lambda: server.engine.stats()["running"] == 0, 3)


def test_a_client_that_does_not_read(folder, monkeypatch):
    monkeypatch.setattr(hub, "WAITING_TOKENS_MAX", 200)
    monkeypatch.setattr(protocol.BoundedProtocol, "write_blocked_s", 0.5)
    with running(folder, context=200_000, script=writes(folder, "x" * 100_000)) as server:
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", server.port))
        connection.sendall(_post({"messages": ASK, "stream": True}))
        wait_for(lambda: server.engine.stats()["running"] == 1)
        wait_for(lambda: server.engine.stats()["running"] == 0, 30)
        assert server.engine.stats()["written_tokens"] < 90_000 and _cancelled(server) == 1
        with pytest.raises(OSError):  # the server gives the connection up as well
            end = time.monotonic() + 20
            while time.monotonic() < end:
                connection.send(b"x")
                time.sleep(0.05)
        connection.close()
        assert server.request("GET", "/health")[0] == 200


@pytest.mark.parametrize(
    "raw",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/one\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nBad Header\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nA: \x00\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nA: " + b"x" * 200_000 + b"\r\n\r\n",
        b"GET /" + b"x" * 200_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
    ],
    ids=range(12),
)
def test_what_is_no_http(folder, raw):
    with running(folder) as server, server.connect() as connection:
        try:
            connection.sendall(raw)
            answer = connection.recv(65536)
        except ConnectionError:  # it may close while the rest is on its way
            answer = b"HTTP/1.1 400"
        assert answer.startswith((b"HTTP/1.1 4", b"HTTP/1.1 5"))
        assert server.request("GET", "/health")[0] == 200


def test_chunked_bodies_and_broken_ones(folder):
    with running(folder) as server:
        raw = json.dumps({"messages": ASK}).encode()
        head = b"POST %s HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n" % CHAT.encode()
        with server.connect() as connection:
            connection.sendall(head + b"%x\r\n%s\r\n0\r\n\r\n" % (len(raw), raw))
            assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        with server.connect() as connection:
            connection.sendall(head + b"zz\r\n")
            assert not connection.recv(65536).startswith(b"HTTP/1.1 200")
        assert server.request("GET", "/health")[0] == 200


def test_half_a_request_is_given_up(folder, monkeypatch):
    monkeypatch.setattr(protocol.BoundedProtocol, "header_read_s", 0.3)
    with running(folder) as server:
        whole = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
        for first, part in ((b"", b""), (b"", b"GET / HTT"), (whole, b"GET /")):
            with server.connect() as connection:
                connection.settimeout(5)
                connection.sendall(first)
                answer = b""
                while first and not answer.endswith(b'{"status":"ok","device":"cpu"}'):
                    answer += connection.recv(65536)
                connection.sendall(part)
                with contextlib.suppress(ConnectionResetError):
                    assert connection.recv(65536) == b""


def test_draining(folder):
    with running(folder, token_s=0.02, script=writes(folder, "x" * 60)) as server:
        client = server.client()
        stream = client.chat.completions.create(model="tiny", messages=ASK, stream=True)
        next(stream)
        assert server.request("GET", "/ready")[0] == 200
        assert server.request("POST", "/admin/drain")[0] == 202
        assert server.request("GET", "/ready")[0] == 503 and server.request("GET", "/health")[0] == 200
        with pytest.raises(openai.RateLimitError) as caught:
            client.chat.completions.create(model="tiny", messages=ASK)
        assert caught.value.code == "draining"
        assert sum(len(chunk.choices[0].delta.content or "") for chunk in stream) == 60
        wait_for(server.state.drained.is_set)


def test_draining_ends_what_takes_too_long(folder):
    with running(folder, token_s=0.02, script=writes(folder, "x" * 3000), drain_timeout_s=0.3) as server:
        stream = server.client().chat.completions.create(model="tiny", messages=ASK, stream=True)
        next(stream)
        server.request("POST", "/admin/drain")
        with pytest.raises(openai.APIError, match="ended the request"):
            list(stream)
        wait_for(server.state.drained.is_set)
        assert server.engine.stats()["running"] == 0


def test_health_fails_when_no_step_finishes(folder, monkeypatch):
    monkeypatch.setattr(hub, "STALL_S", 0.8)
    with running(folder, token_s=0.02, script=writes(folder, "x" * 3000)) as server:
        stream = server.client().chat.completions.create(model="tiny", messages=ASK, stream=True)
        next(stream)
        time.sleep(1.5)
        assert server.request("GET", "/health")[0] == 200
        server.engine.frozen = True
        wait_for(lambda: server.request("GET", "/health")[0] == 503)
        assert server.request("GET", "/ready")[0] == 503
        server.engine.frozen = False
        wait_for(lambda: server.request("GET", "/health")[0] == 200)
        stream.close()


def test_a_lesser_mode_is_told_once(folder, monkeypatch, caplog):
    monkeypatch.setattr(hub, "WATCH_S", 0.02)
    with running(folder) as server:
        for count in (1, 2):
            server.engine.degraded = {"nothing is held": count}
            name = b'outrider_degraded_total{reason="nothing is held"} %d.0' % count
            wait_for(lambda name=name: name in server.request("GET", "/metrics")[2])
            time.sleep(0.2)
    assert caplog.text.count("nothing is held") == 1


def test_many_requests_that_come_and_go(folder):
    with running(folder, streams_max=200, token_s=0.001) as server:
        for number in range(60):
            with server.connect() as connection:
                connection.sendall(_post({"messages": ASK, "stream": number % 2 == 0, "n": 1 + number % 3}))
                if number % 3:
                    connection.recv(200)
        wait_for(lambda: server.engine.stats()["running"] == 0)
        wait_for(lambda: server.state.hub.open_streams == 0)
        assert server.request("POST", CHAT, {"messages": ASK})[0] == 200
