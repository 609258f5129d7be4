"""Thousands of clients that leave anywhere, and a server that is killed: nothing leaks, and the next one is served."""

import contextlib
import json
import random
import socket
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import openai
import pytest
from fake_engine import make_folder
from outrider.serve import hub, protocol
from outrider.serve.start import ServeOptions, open_engine
from serve_artifact import make_artifact
from serve_fixtures import Running, running, running_over, wait_for
from test_serve_process import served

ASK = [{"role": "user", "content": "Where does everything that was begun and never read go in the end?"}]
CHAT = "/v1/chat/completions"
CLIENTS, READERS = 4, 3
FEW, MANY = 400, 100_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_artifact(tmp_path_factory.mktemp("serve") / "m")


@contextlib.contextmanager
def _server(kind: str, folder):
    if kind == "double":
        with running(folder, token_s=0.001, streams_max=200) as server:
            yield server
        return
    sizes = {"kv_tokens": 1024, "prefill_tokens": 48, "decode_tokens": 8, "self_check": True}
    engine, rejected = open_engine(ServeOptions(model=folder, threads=1, engine=sizes))
    with running_over(folder, engine, rejected) as server:
        yield server


POOL_THREADS = 40  # of the event loop's library, at most


@dataclass(frozen=True)
class Held:
    """What a process has of each kind that could leak."""

    descriptors: int
    threads: int

    @classmethod
    def now(cls) -> "Held":
        return cls(*(len(list(Path("/proc/self", kind).iterdir())) for kind in ("fd", "task")))

    def leaks_nothing_since(self, before: "Held") -> bool:
        """A pool of threads may have grown to its size, or idle ones may be gone."""
        return self.descriptors <= before.descriptors and self.threads <= before.threads + POOL_THREADS


def _idle(server: Running) -> bool:
    stats = server.engine.stats()
    used = sum(stats.get(name, 0) for name in ("running", "queued", "kv_pages_used", "open_streams"))
    return used == 0 and server.state.hub.open_streams == 0 and not server.state.hub._mailboxes


def _steady() -> Held:
    """Once connections that were just closed are gone on both sides."""
    held, same = Held.now(), 0
    while same < 10:
        time.sleep(0.05)
        now = Held.now()
        held, same = now, same + 1 if now == held else 0
    return held


def _text(server: Running) -> str:
    body = {"messages": ASK, "max_tokens": 12, "temperature": 0}
    status, _, raw = server.request("POST", CHAT, body)
    assert status == 200, raw
    return json.loads(raw)["choices"][0]["message"]["content"]


def _ask(seed: random.Random) -> bytes:
    body = {"messages": ASK, "stream": seed.random() < 0.7, "n": seed.choice((1, 1, 2, 3)), "max_tokens": 40}
    raw = json.dumps(body | {"temperature": 0}).encode()
    return b"POST %s HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n%s" % (CHAT.encode(), len(raw), raw)


def _leave(connection: socket.socket, seed: random.Random) -> None:
    """Closes in one of the ways that there are."""
    way = seed.randrange(3)
    if way == 0:  # a reset
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    elif way == 1:  # half of the connection first
        connection.shutdown(socket.SHUT_WR)


def _one(server: Running, number: int) -> None:
    """One client: part of a request or all of it, part of the answer or none, and away."""
    seed = random.Random(number)
    with contextlib.suppress(ConnectionError), server.connect() as connection:
        whole = _ask(seed)
        connection.sendall(whole if seed.random() < 0.85 else whole[: seed.randrange(len(whole))])
        connection.settimeout(0.02)
        left = seed.choice((0, 1, 100, 1000, 5000))
        with contextlib.suppress(TimeoutError):
            while left > 0 and (part := connection.recv(min(left, seed.choice((1, 64, 4096))))):
                left -= len(part)
        _leave(connection, seed)


def _storm(server: Running, clients: int) -> None:
    with ThreadPoolExecutor(CLIENTS) as pool:
        for _ in pool.map(lambda number: _one(server, number), range(clients)):
            pass


@pytest.mark.parametrize("kind", ["double", "engine"])
@pytest.mark.parametrize("clients", [FEW, pytest.param(MANY, marks=[pytest.mark.long, pytest.mark.timeout(7200)])])
def test_clients_that_leave_anywhere_leave_nothing(folder, kind, clients):
    with _server(kind, folder) as server:
        text = _text(server)
        _storm(server, CLIENTS)  # what is made once is made
        wait_for(lambda: _idle(server))
        before = _steady()
        _storm(server, clients)
        wait_for(lambda: _idle(server), 30)
        wait_for(lambda: Held.now().leaks_nothing_since(before), 30)
        assert _text(server) == text
        stats = server.engine.stats()
        assert stats["written_tokens"] > 0 and not stats.get("first_violation")
        assert not any(stats.get(name) for name in ("failed_steps", "plan_mismatches", "unplanned_tokens"))


def test_half_open_connections_are_given_up(folder, monkeypatch):
    monkeypatch.setattr(protocol.BoundedProtocol, "header_read_s", 0.5)
    with _server("engine", folder) as server, contextlib.ExitStack() as kept:
        _text(server)
        wait_for(lambda: _idle(server))
        before = _steady().descriptors
        whole = _ask(random.Random(0))
        head = whole.index(b"\r\n\r\n")
        connections = [kept.enter_context(server.connect()) for _ in range(100)]
        for number, connection in enumerate(connections):
            connection.sendall(whole[: number % head])
        wait_for(lambda: Held.now().descriptors <= before + len(connections), 30)  # the clients' ends alone
        assert _text(server) and _idle(server)


def test_readers_that_stop_are_given_up(folder, monkeypatch):
    monkeypatch.setattr(hub, "WAITING_TOKENS_MAX", 200)
    monkeypatch.setattr(protocol.BoundedProtocol, "write_blocked_s", 0.5)
    with running(folder, context=200_000, script=lambda _: [100] * 100_000) as server, contextlib.ExitStack() as kept:
        before = _steady().descriptors
        raw = json.dumps({"messages": ASK, "stream": True}).encode()
        whole = b"POST %s HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n%s" % (CHAT.encode(), len(raw), raw)
        for _ in range(READERS):
            connection = kept.enter_context(socket.socket())
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(("127.0.0.1", server.port))
            connection.sendall(whole)
        wait_for(lambda: server.engine.stats()["running"] > 0)
        wait_for(lambda: _idle(server), 150)
        wait_for(lambda: Held.now().descriptors <= before + READERS, 30)
        assert server.request("GET", "/health")[0] == 200


def test_a_killed_server_starts_again_on_its_port(tmp_path):
    folder = make_folder(tmp_path / "mine")

    def read(client: openai.OpenAI, started: threading.Event, ended: list[str]) -> None:
        try:
            for _ in client.chat.completions.create(model="mine", messages=ASK, stream=True):
                started.set()
            ended.append("whole")
        except Exception as error:  # httpx and openai have errors of their own
            ended.append(type(error).__name__)

    port, ended = 0, []
    for _ in range(3):
        with served(str(folder), token_s=0.05, port=port) as server:
            port = int(server.url.split(":")[2].removesuffix("/v1"))
            started = [threading.Event() for _ in range(5)]
            readers = [threading.Thread(target=read, args=(server.client, event, ended)) for event in started]
            for reader in readers:
                reader.start()
            assert all(event.wait(20) for event in started)
            server.process.kill()
            for reader in readers:
                reader.join(20)
                assert not reader.is_alive()
    assert len(ended) == 15 and "whole" not in ended  # every client was told
    with served(str(folder), port=port) as server:
        answer = server.client.chat.completions.create(model="mine", messages=ASK)
        assert answer.choices[0].finish_reason in ("stop", "length")
