"""What to let a model write about, so that its own text holds the facts that it knows: names that texts mention, and
the words that sentences begin with.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

# Capitalised words behind a word in small letters: no beginning of a sentence.
_NAME = re.compile(r"(?:(?<=[a-z] )|(?<=[a-z], ))[A-Z][a-z]+(?: [A-Z][a-z]+)*\b")
_WORDS = 4  # a longer run is a title
# The first words of a sentence that is no question, a name ends them; and those that a name follows at once.
_START, _STATES = r"(?:^|(?<=[.!?]\s)|(?<=\n))[A-Z][a-z]*", r"[^.!?\n]*\."
_OPENING = re.compile(rf"{_START}(?: [a-z]+){{1,2}}(?= {_STATES})")
_BEFORE_NAME = re.compile(rf"{_START}(?: [a-z]+){{1,3}}(?= [A-Z][a-z]{_STATES})")
_TEXTS = 2


def names_in(texts: Iterable[str]) -> list[str]:
    """Names that at least two of the texts mention, those of most texts first; ties in alphabetical order."""
    return _of_several(texts, lambda text: (name for name in _NAME.findall(text) if len(name.split()) <= _WORDS))


def openings_in(texts: Iterable[str]) -> list[str]:
    """First two or three words of statements of at least two texts, in the same order."""
    return _of_several(texts, _OPENING.findall)


def openings_before_names(texts: Iterable[str]) -> list[str]:
    """The same, two to four words that a name follows: what sentences say of names."""
    return _of_several(texts, _BEFORE_NAME.findall)


def begins_in(texts: Iterable[str]) -> list[str]:
    """What texts about names begin with, in turns: a name; an opening; an opening and the name together.

    Every name comes once alone, and once behind an opening where there is one. Empty without names.
    """
    texts = list(texts)
    openings, before = openings_in(texts), openings_before_names(texts)

    def begins() -> Iterator[str]:
        for number, name in enumerate(names_in(texts)):
            yield name
            yield from openings[number : number + 1]
            if before:
                yield f"{before[number % len(before)]} {name}"

    return list(begins())


def _of_several(texts: Iterable[str], found: Callable[[str], Iterable[str]]) -> list[str]:
    count: Counter[str] = Counter()
    for text in texts:
        count.update(set(found(text)))
    return sorted((one for one, texts in count.items() if texts >= _TEXTS), key=lambda one: (-count[one], one))
