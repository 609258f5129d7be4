"""What all routes share, and the way to the end of it."""

import asyncio
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from outrider.serve.auth import Keys
from outrider.serve.errors import ApiError
from outrider.serve.hub import EngineHub
from outrider.serve.metrics import Metrics

if TYPE_CHECKING:
    from outrider.serve.tokens import ServeTokenizer

DRAIN_POLL_S = 0.05


@dataclass
class ServeState:
    """Owned by the application; used on the event loop alone."""

    name: str
    folder: Path
    tokenizer: "ServeTokenizer"
    hub: EngineHub
    metrics: Metrics
    keys: Keys | None = None
    share_prefixes: bool = False  # of texts of different keys
    drain_timeout_s: float = 30.0
    created: int = field(default_factory=lambda: int(time.time()))
    draining: bool = False
    drained: asyncio.Event = field(default_factory=asyncio.Event)
    _drain: asyncio.Task[None] | None = None

    @property
    def info(self) -> dict[str, Any]:
        return self.hub.engine.info

    def check_model(self, model: str | None) -> None:
        """Raises ApiError 404 for a name that is not ours; no name means the one model there is."""
        if model is not None and model != self.name:
            message = f"The model {model[:200]!r} does not exist; this server has {self.name!r}."
            raise ApiError(404, message, code="model_not_found", param="model")

    def check_vocabulary(self, ids: list[int]) -> None:
        vocab = self.info["vocab"]
        if not ids:
            raise ApiError(400, "The prompt has no token.", code="invalid_value", param="prompt")
        if max(ids) >= vocab:
            message = f"prompt: token {max(ids)} lies outside the vocabulary of {vocab}."
            raise ApiError(400, message, code="invalid_value", param="prompt")

    def start_drain(self) -> None:
        """No new work from now on; `drained` is set when the rest ended, by itself or after `drain_timeout_s`."""
        if self._drain is None:
            self.draining = True
            self.hub.engine.drain()
            self._drain = asyncio.create_task(self._finish_work(), name="outrider-drain")

    async def _finish_work(self) -> None:
        end = time.monotonic() + self.drain_timeout_s
        while self.hub.open_streams and time.monotonic() < end:
            await asyncio.sleep(DRAIN_POLL_S)
        self.hub.cancel_all()
        end = time.monotonic() + 5
        while self.hub.open_streams and time.monotonic() < end:
            await asyncio.sleep(DRAIN_POLL_S)
        self.drained.set()
