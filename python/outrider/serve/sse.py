"""Responses that end with their client: server-sent events, and JSON that takes long."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from outrider.serve.errors import ApiError
from outrider.serve.hub import SlowReader
from outrider.serve.run import Run

_Value = TypeVar("_Value")

DONE = b"data: [DONE]\n\n"


class ClientGone(Exception):
    """The client closed its connection before it had the answer."""


def sse(value: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


class EventStream(Response):
    """Sends `chunks` of `run` until they end, the client leaves or it reads too slowly; then closes the run."""

    def __init__(self, chunks: AsyncIterator[dict[str, Any]], run: Run) -> None:
        super().__init__(media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        del self.headers["content-length"]
        self._chunks, self._run = chunks, run

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        tasks = [
            asyncio.create_task(self._send_all(send)),
            asyncio.create_task(until_gone(receive)),
            asyncio.create_task(self._run.mailbox.too_slow.wait()),
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            self._run.close("disconnected")  # unless the chunks were begun and said how they ended
        if isinstance(outcomes[0], Exception) and not isinstance(outcomes[0], SlowReader):
            raise outcomes[0]

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        try:
            async for chunk in self._chunks:
                await send({"type": "http.response.body", "body": sse(chunk), "more_body": True})
            end = DONE
        except ApiError as error:
            end = sse(error.body())
        finally:
            await self._chunks.aclose()  # type: ignore[attr-defined]
        await send({"type": "http.response.body", "body": end, "more_body": False})


async def until_gone(receive: Receive) -> None:
    """Returns when the client has closed its connection."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def unless_gone(request: Request, work: Awaitable[_Value]) -> _Value:
    """What `work` makes; it is cancelled when the client leaves first.

    Raises:
        ClientGone: it did.
    """
    making = asyncio.ensure_future(work)
    gone = asyncio.create_task(until_gone(request.receive))
    try:
        await asyncio.wait([making, gone], return_when=asyncio.FIRST_COMPLETED)
        if making.done():
            return making.result()
        raise ClientGone
    finally:
        for task in (making, gone):
            task.cancel()
        await asyncio.gather(making, gone, return_exceptions=True)
