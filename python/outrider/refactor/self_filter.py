"""Which of a model's own texts are worth tuning on."""

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

SHORT_TOKENS = 16
_RUN = 8
_TAIL = 128
_DISTINCT, _DISTINCT_TAIL = 0.7, 0.5


def distinct_share(ids: Sequence[int]) -> float:
    """Share of the runs of 8 tokens that are distinct; 1 for texts too short to have two."""
    runs = np.lib.stride_tricks.sliding_window_view(np.asarray(ids), _RUN) if len(ids) > _RUN else np.zeros((1, 1))
    return len(np.unique(runs, axis=0)) / len(runs)


def loops(ids: Sequence[int]) -> bool:
    """Whether a text goes round: over the whole of it, or at its end."""
    return distinct_share(ids) < _DISTINCT or distinct_share(ids[-_TAIL:]) < _DISTINCT_TAIL


class SelfFilter:
    """Keeps a text or counts why not: `unsound`, `short`, `loop`, `evaluation`, `duplicate`.

    `banned` are texts that later measure the model: nothing that contains one is kept. Texts are compared without
    regard to case and white space.
    """

    def __init__(self, decode: Callable[[list[int]], str], banned: Sequence[str] = ()) -> None:
        self._decode = decode
        self._banned = [_folded(text) for text in banned]
        self._seen: set[bytes] = set()
        self.dropped: Counter[str] = Counter()

    def keeps(self, ids: list[int], written: int, *, sound: bool) -> bool:
        """`ids` of the whole text, of which the model wrote those from place `written` on."""
        reason = self._reason(ids[written:], ids, sound)
        if reason:
            self.dropped[reason] += 1
        return reason is None

    def _reason(self, made: list[int], ids: list[int], sound: bool) -> str | None:
        if not sound:
            return "unsound"
        if len(made) < SHORT_TOKENS:
            return "short"
        if loops(made):
            return "loop"
        text = _folded(self._decode(ids))
        if any(banned in text for banned in self._banned):
            return "evaluation"
        digest = hashlib.sha256(text.encode()).digest()
        if digest in self._seen:
            return "duplicate"
        self._seen.add(digest)
        return None


def _folded(text: str) -> str:
    return " ".join(text.casefold().split())
