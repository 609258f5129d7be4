"""A real server in a thread, over the double of the engine."""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fake_engine import END, FakeEngine, ServeRejected, make_folder
from outrider.serve.server import listen, make_server
from outrider.serve.start import ServeOptions, make_state, read_inputs
from outrider.serve.state import ServeState


@dataclass
class Running:
    engine: Any  # a FakeEngine, or the native one
    state: ServeState
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self, key: str = "none") -> Any:
        import openai

        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=20)

    def request(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body, through http.client; `body` bytes go out as they are."""
        import http.client

        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        raw = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, raw, {"Content-Type": "application/json", **names})
        answer = connection.getresponse()
        found = answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
        connection.close()
        return found

    def error(self, path: str, body: Any, **headers: str) -> tuple[int, dict[str, Any]]:
        status, _, raw = self.request("POST", path, body, **headers)
        return status, json.loads(raw)["error"]

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)


@contextlib.contextmanager
def running(folder: Path, *, keys: Path | None = None, drain_timeout_s: float = 5, **engine: Any) -> Iterator[Running]:
    """Over the double of the engine, which takes the further keywords."""
    if not (folder / "tokenizer.json").is_file():
        make_folder(folder)
    double = FakeEngine(**engine)
    with running_over(folder, double, ServeRejected, keys=keys, drain_timeout_s=drain_timeout_s) as server:
        yield server


@contextlib.contextmanager
def running_over(
    folder: Path, engine: Any, rejected: type[Exception], *, keys: Path | None = None, drain_timeout_s: float = 5
) -> Iterator[Running]:
    """Over any engine, which is closed at the end."""
    options = ServeOptions(model=folder, api_keys=keys, name="tiny", drain_timeout_s=drain_timeout_s)
    state = make_state(options, read_inputs(options), engine, rejected)
    with listen("127.0.0.1", 0) as sock:
        server = make_server(state)
        thread = threading.Thread(target=server.run, args=([sock],), name="server")
        thread.start()
        wait_for(lambda: server.started)
        try:
            yield Running(engine, state, sock.getsockname()[1])
        finally:
            server.should_exit = True
            thread.join(15)
            engine.close()
    assert not thread.is_alive()


def wait_for(true: Callable[[], Any], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


def ids_of(text: str, folder: Path) -> list[int]:
    from outrider.serve.tokens import ServeTokenizer

    return ServeTokenizer(folder).encode(text)


def writes(folder: Path, text: str) -> Callable[[list[int]], list[int]]:
    """A script that answers everything with `text`."""
    if not (folder / "tokenizer.json").is_file():
        make_folder(folder)
    ids = ids_of(text, folder)
    return lambda _: [*ids, END]
