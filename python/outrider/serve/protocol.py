"""Connections that cannot be held for nothing: half a request, or a reader that stopped, ends one."""

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

HEADER_BYTES_MAX = 32 << 10
HEADER_READ_S = 15.0
WRITE_BLOCKED_S = 30.0
WRITE_PROGRESS_BYTES = 16 << 10
KEEP_ALIVE_S = 30
CONNECTIONS_MAX = 1024


class BoundedProtocol(H11Protocol):
    """h11 with a deadline for the head of a request and for a client that reads nothing.

    What was written and waits for the client is looked at every `write_blocked_s`: where nobody adds to it, it has to
    have become WRITE_PROGRESS_BYTES less since the look before, or nothing.
    """

    header_read_s = HEADER_READ_S
    write_blocked_s = WRITE_BLOCKED_S
    _head: asyncio.TimerHandle | None = None
    _look: asyncio.TimerHandle | None = None
    _unsent: int | None = None  # at the last look, where nobody has added to it since
    _looked_at: object = None  # the request that was answered then

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._head = self.loop.call_later(self.header_read_s, transport.abort)
        self._look = self.loop.call_later(self.write_blocked_s, self._look_at_unsent)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        waiting = self.cycle is None or self.cycle.response_complete
        if waiting and self._head is None:
            self._head = self.loop.call_later(self.header_read_s, self.transport.abort)
        elif not waiting:
            self._head = _cancelled(self._head)
        if not waiting and not self.cycle.more_body and len(self.conn.trailing_data[0]) <= HEADER_BYTES_MAX:
            self.flow.resume_reading()  # behind a request that came too early, the end of the connection shows as well

    def _look_at_unsent(self) -> None:
        unsent, before = self.transport.get_write_buffer_size(), self._unsent
        done = self.cycle is None or self.cycle.response_complete or self.transport.is_closing()
        self._unsent = unsent if unsent and (done or self.flow.write_paused) else None
        same = before is not None and self._looked_at is self.cycle
        if same and self._unsent is not None and unsent > before - WRITE_PROGRESS_BYTES:
            self.transport.abort()
            return
        self._looked_at = self.cycle
        self._look = self.loop.call_later(self.write_blocked_s, self._look_at_unsent)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._unsent = None

    def connection_lost(self, exc: Exception | None) -> None:
        self._head, self._look = _cancelled(self._head), _cancelled(self._look)
        super().connection_lost(exc)


def _cancelled(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
