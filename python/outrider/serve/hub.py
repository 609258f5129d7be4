"""Between the event loop and the engine: one reader of the engine's events, one mailbox per HTTP request."""

import asyncio
import logging
import time
from collections import deque
from typing import Any

from outrider.serve.errors import ApiError, rejection

_log = logging.getLogger("outrider.serve")
POLL_EVENTS = 256
# Tokens of one choice that wait for its connection; a client that reads more slowly loses its request.
WAITING_TOKENS_MAX = 4096
STALL_S = 10.0
WATCH_S = 0.5


class SlowReader(Exception):
    """The client did not read what was written for it."""


class Mailbox:
    """Events of the streams of one HTTP request, in the order of their arrival. Used on the event loop alone."""

    def __init__(self, hub: "EngineHub") -> None:
        self._hub = hub
        self._events: deque[tuple[int, dict[str, Any]]] = deque()
        self._waiting_tokens = 0
        self._submitted = 0
        self._wake = asyncio.Event()
        self._open: dict[int, int] = {}  # stream -> index of the choice
        self.too_slow = asyncio.Event()

    def submit(self, index: int, prompt: list[int], params: dict[str, Any]) -> None:
        """Raises ApiError when the engine does not take the request; those submitted before go on."""
        self._open[self._hub.submit(self, prompt, params)] = index
        self._submitted += 1

    def put(self, event: dict[str, Any]) -> None:
        """By the hub. Takes the last event of a stream always, others up to WAITING_TOKENS_MAX for each choice."""
        stream = event["stream"]
        index = self._open[stream]
        if event["finish"] is not None:
            del self._open[stream]
        self._waiting_tokens += len(event["tokens"])
        if self._waiting_tokens > WAITING_TOKENS_MAX * self._submitted:
            self.too_slow.set()
            self.close()
        else:
            self._events.append((index, event))
        self._wake.set()

    async def next(self) -> tuple[int, dict[str, Any]] | None:
        """The next event with the index of its choice; None after the last one.

        Raises:
            SlowReader: more waited here than may.
        """
        while not self._events:
            if self.too_slow.is_set():
                raise SlowReader
            if not self._open:
                return None
            self._wake.clear()
            # Not wait_for: before Python 3.12 it drops a cancellation that comes together with an event.
            await self._wake.wait()
        index, event = self._events.popleft()
        self._waiting_tokens -= len(event["tokens"])
        return index, event

    def cancel(self, index: int) -> None:
        """Ends one choice; its remaining events are dropped, also those that wait here."""
        for stream in [stream for stream, of in self._open.items() if of == index]:
            del self._open[stream]
            self._hub.cancel(stream)
        self._waiting_tokens -= sum(len(event["tokens"]) for of, event in self._events if of == index)
        self._events = deque(item for item in self._events if item[0] != index)

    def close(self) -> None:
        """Cancels what still runs. May be called twice."""
        for stream in list(self._open):
            self._hub.cancel(stream)
        self._open.clear()


class EngineHub:
    """Owns the reader of the engine's event file descriptor. Everything here runs on the event loop."""

    def __init__(self, engine: Any, rejected: type[Exception]) -> None:
        self.engine = engine
        self._rejected = rejected
        self._mailboxes: dict[int, Mailbox] = {}
        self._watch: asyncio.Task[None] | None = None
        self._progress = (-1, time.monotonic())  # steps, and when their number last changed or nothing ran
        self._warned: set[str] = set()
        self.rate = 0.0  # tokens written per second, lately

    def start(self) -> None:
        asyncio.get_running_loop().add_reader(self.engine.event_fd, self._read)
        self._watch = asyncio.create_task(self._watch_steps(), name="outrider-watch")

    async def stop(self) -> None:
        asyncio.get_running_loop().remove_reader(self.engine.event_fd)
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)

    def submit(self, mailbox: Mailbox, prompt: list[int], params: dict[str, Any]) -> int:
        try:
            stream = self.engine.submit(prompt, **params)
        except self._rejected as error:
            raise rejection(error) from None
        self._mailboxes[stream] = mailbox
        return stream

    def cancel(self, stream: int) -> None:
        if self._mailboxes.pop(stream, None) is not None:
            self.engine.cancel(stream)

    def cancel_all(self) -> None:
        """Ends every stream; their readers see the finish `cancelled`."""
        for stream in self._mailboxes:
            self.engine.cancel(stream)

    @property
    def open_streams(self) -> int:
        return len(self._mailboxes)

    @property
    def stalled(self) -> bool:
        """Work exists and no step finished for STALL_S."""
        return time.monotonic() - self._progress[1] > STALL_S

    @property
    def device_error(self) -> str:
        """Why the engine's machine is lost, and nothing will run any more; empty: it is not."""
        return self.engine.stats().get("device_error", "")

    def _read(self) -> None:
        for event in self.engine.poll(POLL_EVENTS):
            mailbox = self._mailboxes.get(event["stream"])
            if mailbox is None:  # cancelled in the meantime
                continue
            if event["finish"] is not None:
                del self._mailboxes[event["stream"]]
            mailbox.put(event)

    async def _watch_steps(self) -> None:
        written, then = 0, time.monotonic()
        while True:
            stats, now = self.engine.stats(), time.monotonic()
            self._warn(stats.get("degraded", {}))
            self._tell_loss(stats.get("device_error", ""))
            idle = not stats.get("running") and not stats.get("queued")
            if idle or stats.get("steps", 0) != self._progress[0]:
                self._progress = (stats.get("steps", 0), now)
            if now - then >= 2 * WATCH_S:
                self.rate = (stats.get("written_tokens", 0) - written) / (now - then)
                written, then = stats.get("written_tokens", 0), now
            await asyncio.sleep(WATCH_S)

    def _tell_loss(self, error: str) -> None:
        if error and error not in self._warned:
            self._warned.add(error)
            _log.error("no request can be served any more, start the server again: %s", error)

    def _warn(self, degraded: dict[str, int]) -> None:
        """Of each lesser mode once; how often it was entered is a metric."""
        for reason in degraded.keys() - self._warned:
            self._warned.add(reason)
            _log.warning("the engine does less than it should: %s", reason)


def failure(event: dict[str, Any]) -> ApiError | None:
    """The error that the last event of a stream tells, if it tells one."""
    if event["finish"] == "error":
        return ApiError(500, event["error"] or "The engine failed.", code="engine_error")
    if event["finish"] == "cancelled":
        return ApiError(503, event["error"] or "The server ended the request.", code="cancelled", retry_after_s=1)
    return None
