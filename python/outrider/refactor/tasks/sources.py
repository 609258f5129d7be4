"""Parses the published task files into canonical items. Texts are formed as lm-evaluation-harness forms them.

HellaSwag keeps its context as stored: the file joins the two halves of a context, of which the harness capitalises the
second, so figures differ slightly from published ones.
"""

import bz2
import csv
import io
import json
import lzma
import re
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from outrider.refactor.errors import InputError
from outrider.refactor.tasks.items import Choice, Cloze, Item, Partial, checked

_LETTERS = "ABCD"


@dataclass(frozen=True)
class Source:
    """`count` items are in the published file; another number is an error."""

    file: str
    count: int
    parse: Callable[[Path], list[Item]]


def load(name: str, folder: Path) -> list[Item]:
    """All items of a task in the order of its file.

    Raises:
        InputError: E_TASK for an unknown task, an unreadable file, a malformed item or a wrong number of items.
    """
    if name not in SOURCES:
        raise InputError("E_TASK", folder, name, "an unknown task", ", ".join(SOURCES))
    source = SOURCES[name]
    path = Path(folder) / source.file
    try:
        items = source.parse(path)
    except (OSError, EOFError, ValueError, KeyError, lzma.LZMAError, tarfile.TarError) as error:
        raise InputError("E_TASK", path, name, str(error)[:120], "the published file") from error
    if len(items) != source.count:
        raise InputError("E_TASK", path, name, f"{len(items)} items", f"{source.count}")
    return [checked(item, path) for item in items]


def instructions(word: str, prefix: str, path: Path) -> list[Item]:
    """Items stored as one instruction text: a question, `<word>1: ... <word>2: ...` and the answer's name."""
    items: list[Item] = []
    for number, row in enumerate(json.loads(lzma.decompress(path.read_bytes()))):
        question, options, gold = _instruction(word, row, path, number)
        items.append(Choice(f"{prefix}-{number}", f"Question: {question}\nAnswer:", options, gold))
    return items


def winogrande(path: Path) -> list[Item]:
    """The context ends with the option in place of `_`; what follows it is scored."""
    items: list[Item] = []
    for number, row in enumerate(json.loads(lzma.decompress(path.read_bytes()))):
        sentence, options, gold = _instruction("Option", row, path, number)
        before, blank, after = sentence.partition("_")
        if not blank:
            raise InputError("E_TASK", path, f"item {number}", "no _ in the sentence", "one")
        items.append(Partial(f"winogrande-{number}", [before + option for option in options], after.strip(), gold))
    return items


def _instruction(word: str, row: dict, path: Path, number: int) -> tuple[str, list[str], int]:
    """(question, options, index of the right one)."""
    text = re.split(r"\s*Answer format:", row["instruction"])[0].partition(": ")[2]
    parts = re.split(rf"\s*{word}(\d+):\s*", text)
    numbers, options = parts[1::2], [option.strip() for option in parts[2::2]]
    if numbers != [str(i + 1) for i in range(len(options))]:
        raise InputError("E_TASK", path, f"item {number}", f"options {numbers}", "1, 2, ... in order")
    answer = re.fullmatch(rf"{word.lower()}(\d+)", row["answer"])
    if answer is None:
        raise InputError("E_TASK", path, f"item {number}", f"answer {row['answer']!r}", f"{word.lower()}1 and so on")
    return parts[0].strip(), options, int(answer[1]) - 1


def hellaswag(path: Path) -> list[Item]:
    """Six lines an item: context, index of the right ending, four endings."""
    lines = bz2.decompress(path.read_bytes()).decode("utf-8").split("\n")
    starts = range(0, len(lines) - 5, 6)
    return [
        Choice(
            f"hellaswag-{number}",
            lines[start].strip(),
            [ending.strip() for ending in lines[start + 2 : start + 6]],
            int(lines[start + 1]),
        )
        for number, start in enumerate(starts)
    ]


def lambada(path: Path) -> list[Item]:
    """The last word, split off at the last space."""
    items: list[Item] = []
    for number, line in enumerate(lzma.decompress(path.read_bytes()).decode("utf-8").splitlines()):
        context, _, target = json.loads(line)["text"].rpartition(" ")
        items.append(Cloze(f"lambada-{number}", context, target))
    return items


def mmlu(path: Path) -> list[Item]:
    """Five examples from the subject's dev part before each question; the choices are letters."""
    tables: dict[str, list[list[str]]] = {}
    with tarfile.open(path) as archive:
        for member in archive.getmembers():
            if member.name.endswith(".csv"):
                stream = archive.extractfile(member)
                assert stream is not None
                rows = list(csv.reader(io.StringIO(stream.read().decode("utf-8"), newline="")))
                tables[Path(member.name).stem] = rows[1:]
    items: list[Item] = []
    for subject in sorted(name.removesuffix("_test") for name in tables if name.endswith("_test")):
        examples = [f"{_question(row)} {_LETTERS[int(row[5])]}\n\n" for row in tables[f"{subject}_dev"][:5]]
        title = subject.replace("_", " ")
        head = f"The following are multiple choice questions (with answers) about {title}.\n\n" + "".join(examples)
        for number, row in enumerate(tables[f"{subject}_test"]):
            items.append(Choice(f"mmlu-{subject}-{number}", head + _question(row), list(_LETTERS), int(row[5])))
    return items


def _question(row: list[str]) -> str:
    if len(row) != 6:
        raise ValueError(f"a row of {len(row)} fields instead of 6")
    options = "".join(f"{letter}. {text}\n" for letter, text in zip(_LETTERS, row[1:5], strict=True))
    return f"{row[0].strip()}\n{options}Answer:"


SOURCES = {
    "lambada": Source("lambada_test.jsonl.xz", 5_153, lambada),
    "hellaswag": Source("hellaswag_val_full.txt.bz2", 10_042, hellaswag),
    "arc_easy": Source("ARC-Easy.test.json.xz", 2_376, lambda path: instructions("Answer", "arc_easy", path)),
    "arc_challenge": Source(
        "ARC-Challenge.test.json.xz", 1_172, lambda path: instructions("Answer", "arc_challenge", path)
    ),
    "piqa": Source("piqa.test.json.xz", 1_838, lambda path: instructions("Solution", "piqa", path)),
    "winogrande": Source("winogrande.test.json.xz", 1_267, winogrande),
    "mmlu": Source("mmlu.tar.xz", 14_042, mmlu),
}
