"""Canonical items, one JSON object a line, that the built-in scorer and lm-evaluation-harness both read."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from outrider.refactor.errors import InputError


@dataclass(frozen=True)
class Choice:
    """Which continuation of one context is the likeliest? The scored text is a space and the choice."""

    id: str
    context: str
    choices: list[str]
    gold: int

    def requests(self) -> list[tuple[str, str]]:
        return [(self.context, f" {choice}") for choice in self.choices]


@dataclass(frozen=True)
class Partial:
    """Which context makes one continuation the likeliest? Partial scoring of WinoGrande."""

    id: str
    contexts: list[str]
    continuation: str
    gold: int

    def requests(self) -> list[tuple[str, str]]:
        return [(context, f" {self.continuation}") for context in self.contexts]


@dataclass(frozen=True)
class Cloze:
    """Is the target the greedy continuation, and how likely is it? Last words of LAMBADA."""

    id: str
    context: str
    target: str

    def requests(self) -> list[tuple[str, str]]:
        return [(self.context, f" {self.target}")]


Item = Choice | Partial | Cloze
_KINDS = {kind.__name__.lower(): kind for kind in (Choice, Partial, Cloze)}


def kind_of(item: Item) -> str:
    """`choice`, `partial` or `cloze`."""
    return type(item).__name__.lower()


def to_lines(items: Iterable[Item]) -> str:
    """JSONL with a field `kind`."""
    return "".join(json.dumps({"kind": kind_of(i), **asdict(i)}, ensure_ascii=False) + "\n" for i in items)


def read_items(path: Path) -> list[Item]:
    """Raises InputError E_TASK for an unreadable file, an unknown kind or a gold index out of range."""
    items: list[Item] = []
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise InputError("E_TASK", path, "items", str(error), "a task file") from error
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            fields = json.loads(line)
            items.append(checked(_KINDS[fields.pop("kind")](**fields), path))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError("E_TASK", path, f"line {number}", repr(error)[:80], "a canonical item") from error
    return items


def checked(item: Item, where: Path | str) -> Item:
    """The item itself; raises InputError E_TASK when its gold index is out of range or a text is missing."""
    if isinstance(item, Cloze):
        if not item.context or not item.target:
            raise InputError("E_TASK", where, item.id, "an empty text", "a context and a target")
        return item
    options = item.choices if isinstance(item, Choice) else item.contexts
    if len(options) < 2 or not all(options):
        raise InputError("E_TASK", where, item.id, repr(options)[:80], "at least two options, none empty")
    if not 0 <= item.gold < len(options):
        raise InputError("E_TASK", where, item.id, f"answer {item.gold}", f"0 to {len(options) - 1}")
    return item
