"""From tokens to text that may be sent: whole characters, and nothing of a stop string."""

from collections.abc import Callable, Sequence

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
# A character of UTF-8 has four bytes at most, so at most three of them wait for the rest.
_WAITING_MAX = 3
# Tokens decoded at once; longer only while half a character waits.
_WINDOW_MAX = 64
_OVERLAP = 8


class Detokenizer:
    """Text of a growing list of ids; what may still be half a character waits. `before`: ids that stand before it."""

    def __init__(self, decode: Callable[[Sequence[int]], str], before: Sequence[int] = ()) -> None:
        self._decode = decode
        text = decode(before) if before else ""
        if text.endswith(_REPLACEMENT):  # half a character, which the text does not complete
            before, text = (), ""
        self._window = list(before)  # the last ids; those before `_settled` give context only
        self._settled = len(self._window)
        self._sent = len(text)  # characters of the window's text

    def add(self, token: int) -> str:
        self._window.append(token)
        text = self._decode(self._window)
        waiting = min(len(text) - len(text.rstrip(_REPLACEMENT)), _WAITING_MAX)
        piece = self._take(text, len(text) - waiting)
        if waiting == 0:
            self._slide(self._settled, 0)
        elif len(self._window) > _WINDOW_MAX:
            self._slide(len(self._window) - _OVERLAP, waiting)
        return piece

    def finish(self) -> str:
        """What waited; half a character becomes a replacement character."""
        text = self._decode(self._window)
        return self._take(text, len(text))

    def _take(self, text: str, end: int) -> str:
        piece = text[self._sent : end]
        self._sent = max(self._sent, end)
        return piece

    def _slide(self, drop: int, waiting: int) -> None:
        self._window = self._window[drop:]
        self._settled = len(self._window)
        self._sent = len(self._decode(self._window)) - waiting


class StopMatcher:
    """Cuts text at the first stop string; what may be the beginning of one waits."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._waiting = ""
        self.hit: str | None = None

    def add(self, piece: str) -> str:
        """Text that may be sent. After a hit, nothing."""
        if self.hit is not None:
            return ""
        text = self._waiting + piece
        found = [(text.find(stop), -len(stop), stop) for stop in self._stops if stop in text]
        if found:
            begin, _, self.hit = min(found)
            self._waiting = ""
            return text[:begin]
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._waiting = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        text, self._waiting = self._waiting, ""
        return text


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop` and is not all of it."""
    for length in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
