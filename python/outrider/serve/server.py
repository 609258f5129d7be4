"""The process around the application: socket, signals, drain, exit code."""

import asyncio
import contextlib
import errno
import signal
import socket
from collections.abc import Iterator

import uvicorn

from outrider.refactor.errors import InputError
from outrider.serve.app import create_app
from outrider.serve.errors import EXIT_LEAK
from outrider.serve.protocol import CONNECTIONS_MAX, HEADER_BYTES_MAX, KEEP_ALIVE_S, BoundedProtocol
from outrider.serve.state import ServeState

SHUTDOWN_S = 5
IDLE_S = 2.0


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; raises InputError E_LISTEN."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=128)
    except OSError as error:
        busy = error.errno == errno.EADDRINUSE
        found = "another program listens there" if busy else str(error)
        expected = "a free port (--port)" if busy else "an address of this machine and a port"
        raise InputError("E_LISTEN", f"{host}:{port}", "address", found, expected) from None


class Server(uvicorn.Server):
    """Signals are ours: the first one drains, the second one cancels what still runs."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def make_server(state: ServeState) -> Server:
    config = uvicorn.Config(
        create_app(state),
        http=BoundedProtocol,
        loop="asyncio",
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        h11_max_incomplete_event_size=HEADER_BYTES_MAX,
        limit_concurrency=CONNECTIONS_MAX,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=SHUTDOWN_S,
    )
    return Server(config)


def serve(state: ServeState, sock: socket.socket) -> int:
    """Serves until a signal or `/admin/drain`, then ends what runs. Returns the exit code; closes the engine."""
    engine = state.hub.engine
    try:
        asyncio.run(_serve(state, sock))
        return 0 if engine.wait_idle(IDLE_S) and not _left(engine.stats()) else EXIT_LEAK
    finally:
        engine.close()


def _left(stats: dict[str, float]) -> bool:
    return any(stats.get(name, 0) for name in ("running", "queued", "kv_pages_used"))


async def _serve(state: ServeState, sock: socket.socket) -> None:
    server = make_server(state)

    def on_signal() -> None:
        if state.draining:
            state.hub.cancel_all()
        state.start_drain()

    async def end_when_drained() -> None:
        await state.drained.wait()
        server.should_exit = True

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal)
    ending = asyncio.create_task(end_when_drained(), name="outrider-end")
    try:
        await server.serve(sockets=[sock])
    finally:
        ending.cancel()
        await asyncio.gather(ending, return_exceptions=True)
