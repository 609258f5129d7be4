"""One text that is being written: events of the engine in, pieces of text out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from outrider.serve.text import Detokenizer, StopMatcher

LogprobRow = tuple[int, float, list[tuple[int, float]]]


@dataclass
class Delta:
    """What one event added. `pieces` are parts of `text`, each with the expert of the token that released it."""

    text: str = ""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[LogprobRow] = field(default_factory=list)
    prompt_logprobs: list[LogprobRow] = field(default_factory=list)
    pieces: list[tuple[str, int | None]] = field(default_factory=list)
    finish: str | None = None


class Choice:
    """Counts, text and end of one stream. `limit` of tokens: those beyond are dropped (0 of a prompt's echo).

    `before`: the end of the prompt, where the text goes on from it.
    """

    def __init__(
        self,
        prompt: Sequence[int],
        decode: Callable[[Sequence[int]], str],
        stops: Sequence[str],
        limit: int | None,
        before: Sequence[int] = (),
    ) -> None:
        self.prompt = prompt
        self.cached = 0
        self.written = 0
        self.finish: str | None = None
        self._limit = limit
        self._text = Detokenizer(decode, before)
        self._stop = StopMatcher(stops)
        self._experts: list[int] = []  # of the prompt, then of the text
        self._held: list[tuple[str, int | None]] = []  # pieces that the stop matcher holds back

    def add(self, event: dict[str, Any]) -> Delta:
        """After the delta with a finish, nothing more may come; the stream may have to be cancelled."""
        delta = Delta()
        tokens, rows = event["tokens"], event["logprobs"] or []
        own = len(rows) - len(tokens) if rows else 0  # rows of the prompt come first
        delta.prompt_logprobs = list(rows[:own])
        self._experts += event["experts"] or []
        for place, token in enumerate(tokens):
            if self._limit is not None and self.written >= self._limit:
                break
            delta.tokens.append(token)
            if rows:
                delta.logprobs.append(rows[own + place])
            self._append(delta, self._text.add(token), self._expert(self.written))
            self.written += 1
            if self._stop.hit is not None:
                break
        if self._stop.hit is not None:
            self.finish = delta.finish = "stop"
        elif event["finish"] is not None:
            self._append(delta, self._text.finish(), self._expert(self.written - 1))
            if self._stop.hit is None:
                self._send(delta, self._stop.finish())
            self.finish = delta.finish = "stop" if self._stop.hit is not None else self._end(event["finish"])
        self.cached = max(self.cached, event["cached_tokens"] or 0)
        return delta

    def _end(self, finish: str) -> str:
        """An end that a dropped token brought is none of the text."""
        return "length" if self._limit == 0 and finish == "stop" else finish

    def _expert(self, place: int) -> int | None:
        index = len(self.prompt) + place
        return self._experts[index] if place >= 0 and index < len(self._experts) else None

    def _append(self, delta: Delta, piece: str, expert: int | None) -> None:
        if piece:
            self._held.append((piece, expert))
            self._send(delta, self._stop.add(piece))

    def _send(self, delta: Delta, text: str) -> None:
        delta.text += text
        left = len(text)
        while left:
            piece, expert = self._held.pop(0)
            delta.pieces.append((piece[:left], expert))
            if len(piece) > left:
                self._held.insert(0, (piece[left:], expert))
            left -= min(left, len(piece))


def usage(choices: Sequence[Choice], prompts: int) -> dict[str, Any]:
    """OpenAI's counts; each of `prompts` prompts counts once, however many choices it has."""
    each = max(len(choices) // prompts, 1)
    prompt = sum(len(choice.prompt) for choice in choices[::each])
    written = sum(choice.written for choice in choices)
    cached = sum(choice.cached for choice in choices[::each])
    return {
        "prompt_tokens": prompt,
        "completion_tokens": written,
        "total_tokens": prompt + written,
        "prompt_tokens_details": {"cached_tokens": cached},
    }
