"""Token ids for a load: real text, so that routing and shared prefixes are real."""

import random
import sysconfig
from collections.abc import Callable
from pathlib import Path

from outrider.refactor.documents import format_of, read_documents
from outrider.refactor.errors import InputError
from outrider.serve.replay.load import Load

DOMAIN_TOKENS = 60_000
_DOMAIN_CHARS = 400_000


def domain_tokens(folder: Path | None, encode: Callable[[str], list[int]]) -> dict[str, list[int]]:
    """Ids by domain: a file of `folder` is one; without a folder, modules of this Python's standard library.

    Raises:
        InputError: E_DATA when there is no text.
    """
    if folder is None:
        root = Path(sysconfig.get_path("stdlib"))
        names = sorted(path.name for path in root.glob("*.py"))
        texts = {"code": "".join((root / name).read_text("utf-8", "replace") for name in names[:40])}
    else:
        files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if format_of(path.name))
        texts = {name: _text(folder, name) for name in files}
    domains = {name: encode(text[:_DOMAIN_CHARS])[:DOMAIN_TOKENS] for name, text in texts.items()}
    domains = {name: ids for name, ids in domains.items() if ids}
    if not domains:
        raise InputError("E_DATA", str(folder), "texts", "none", ".txt or .jsonl files, also compressed")
    return domains


def _text(folder: Path, name: str) -> str:
    parts, size = [], 0
    for document in read_documents(folder, name):
        parts.append(document.text)
        size += len(document.text)
        if size >= _DOMAIN_CHARS:
            break
    return "\n".join(parts)


def prompts_of(load: Load, domains: dict[str, list[int]], seed: int) -> list[list[int]]:
    """A prompt per row: its domain and place are drawn; equal blocks of different rows are equal text."""
    draw = random.Random(seed)
    names = sorted(domains)
    prompts = []
    for row in load.rows:
        prompt: list[int] = []
        for block in row.blocks:
            if len(prompt) >= row.prompt_tokens:
                break
            own = random.Random(f"{seed} {block}")
            prompt += _piece(domains[own.choice(names)], row.block_tokens, own)
        rest = row.prompt_tokens - len(prompt)
        if rest > 0:
            prompt += _piece(domains[draw.choice(names)], rest, draw)
        prompts.append(prompt[: row.prompt_tokens])
    return prompts


def _piece(ids: list[int], tokens: int, draw: random.Random) -> list[int]:
    """From a drawn place on, around the end."""
    place = draw.randrange(len(ids))
    piece = ids[place : place + tokens]
    while len(piece) < tokens:
        piece += ids[: tokens - len(piece)]
    return piece
