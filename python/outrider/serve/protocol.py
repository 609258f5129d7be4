"""Connections that cannot be held for nothing: half a request, or a reader that stopped, ends one."""

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

HEADER_BYTES_MAX = 32 << 10
HEADER_READ_S = 15.0
WRITE_BLOCKED_S = 30.0
KEEP_ALIVE_S = 30
CONNECTIONS_MAX = 1024


class BoundedProtocol(H11Protocol):
    """h11 with a deadline for the head of a request and for a client that reads nothing."""

    header_read_s = HEADER_READ_S
    write_blocked_s = WRITE_BLOCKED_S
    _head: asyncio.TimerHandle | None = None
    _blocked: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._head = self.loop.call_later(self.header_read_s, transport.abort)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        waiting = self.cycle is None or self.cycle.response_complete
        if waiting and self._head is None:
            self._head = self.loop.call_later(self.header_read_s, self.transport.abort)
        elif not waiting:
            self._head = _cancelled(self._head)

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._blocked is None:
            self._blocked = self.loop.call_later(self.write_blocked_s, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._blocked = _cancelled(self._blocked)

    def connection_lost(self, exc: Exception | None) -> None:
        self._head, self._blocked = _cancelled(self._head), _cancelled(self._blocked)
        super().connection_lost(exc)


def _cancelled(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
