"""Writes a card, or makes its Markdown and picture again from its JSON."""

import io
from pathlib import Path
from typing import Any

from outrider.refactor.atomic import write_file
from outrider.refactor.card.markdown import PICTURE_NAME, render
from outrider.refactor.card.picture import draw
from outrider.refactor.card.schema import JSON_NAME, check, dump, load

MARKDOWN_NAME = "quality_card.md"


def write_card(card: dict[str, Any], folder: Path) -> None:
    """Checks the card and writes JSON, Markdown and picture into `folder`; raises InputError E_CARD and writes nothing
    when a field does not fit."""
    check(card, Path(folder) / JSON_NAME)
    write_file(Path(folder) / JSON_NAME, dump(card))
    regenerate(folder)


def regenerate(folder: Path) -> list[Path]:
    """Markdown and picture from `FOLDER/quality_card.json`, byte for byte the same each time; returns their paths."""
    folder = Path(folder)
    card = load(folder)
    buffer = io.BytesIO()
    draw(card, buffer)
    write_file(folder / MARKDOWN_NAME, render(card))
    write_file(folder / PICTURE_NAME, buffer.getvalue())
    return [folder / MARKDOWN_NAME, folder / PICTURE_NAME]
