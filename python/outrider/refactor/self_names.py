"""Names that texts mention: what to let a model write about, so that its own text holds the facts that it knows."""

import re
from collections import Counter
from collections.abc import Iterable

# Capitalised words behind a word in small letters: no beginning of a sentence.
_NAME = re.compile(r"(?:(?<=[a-z] )|(?<=[a-z], ))[A-Z][a-z]+(?: [A-Z][a-z]+)*\b")
_WORDS = 4  # a longer run is a title
_TEXTS = 2


def names_in(texts: Iterable[str]) -> list[str]:
    """Names that at least two of the texts mention, those of most texts first; ties in alphabetical order."""
    count: Counter[str] = Counter()
    for text in texts:
        count.update({name for name in _NAME.findall(text) if len(name.split()) <= _WORDS})
    return sorted((name for name, texts in count.items() if texts >= _TEXTS), key=lambda name: (-count[name], name))
