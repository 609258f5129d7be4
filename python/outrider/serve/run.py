"""One HTTP request while it is answered: its choices, its mailbox, and when what happened."""

import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

from outrider.serve.choice import Choice, Delta, usage
from outrider.serve.errors import ApiError
from outrider.serve.hub import Mailbox, failure
from outrider.serve.sampling import for_choice
from outrider.serve.state import ServeState


class Run:
    """Submits all choices at once, or none; then hands out what they write."""

    def __init__(self, state: ServeState, prefix: str, request: Any, prompts: list[list[int]]) -> None:
        self.state, self.request = state, request
        self.id = f"{prefix}-{uuid.uuid4().hex}"
        self.created = int(time.time())
        self.chat = prefix == "chatcmpl"
        self.prompts = prompts
        self.choices: list[Choice] = []
        self.mailbox = Mailbox(state.hub)
        self._started = time.monotonic()
        self._first: list[float | None] = []
        self._counted = False

    def start(self, params: dict[str, Any], *, limit: int | None = None) -> None:
        """Raises ApiError when the engine takes less than all of it."""
        each = self.request.choices
        try:
            _check_choices(each * len(self.prompts), params.get("tenant_requests_max", 0))
            for number, prompt in enumerate(self.prompts):
                before = () if self.chat else self.state.tokenizer.before_text(prompt)
                for choice in range(each):
                    self.mailbox.submit(number * each + choice, prompt, for_choice(params, choice))
                    self.choices.append(Choice(prompt, self.state.tokenizer.decode, self.request.stops, limit, before))
                    self._first.append(None)
        except BaseException as error:
            if isinstance(error, ApiError) and error.code == "context_length_exceeded":
                error.param = error.param or ("messages" if self.chat else "prompt")
            self.close({429: "rejected", 503: "failed"}.get(getattr(error, "status", 0), "invalid"))
            raise

    async def deltas(self) -> AsyncIterator[tuple[int, Delta]]:
        """What the choices write, as it comes, to the end of the last one.

        Raises:
            ApiError: the engine failed or the server ended a choice.
        """
        outcome = "disconnected"
        try:
            while (item := await self.mailbox.next()) is not None:
                index, event = item
                choice = self.choices[index]
                error = failure(event)
                if error is not None:
                    outcome = "failed" if error.status == 500 else "cancelled"
                    raise error
                delta = choice.add(event)
                if choice.written and self._first[index] is None:
                    self._first[index] = time.monotonic()
                if delta.finish is not None:
                    self.mailbox.cancel(index)
                    self._measure(index)
                yield index, delta
            outcome = self.choices[0].finish or "stop"
        finally:
            self.close(outcome)

    def close(self, outcome: str) -> None:
        """Cancels what still runs. The first call says how the request ended."""
        self.mailbox.close()
        if not self._counted:
            self._counted = True
            self.state.metrics.requests.labels(outcome).inc()

    def usage(self) -> dict[str, Any]:
        return usage(self.choices, len(self.prompts))

    def _measure(self, index: int) -> None:
        first, written = self._first[index], self.choices[index].written
        if first is not None and written:
            self.state.metrics.observe(self._started, first, time.monotonic(), written)


def _check_choices(choices: int, most: int) -> None:
    """What a key may never have at once is not told to come back."""
    if most and choices > most:
        message = f"The request has {choices} choices, each of which counts; this API key may have {most} at once."
        raise ApiError(400, message, code="invalid_value", param="n")
