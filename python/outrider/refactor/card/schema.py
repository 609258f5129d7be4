"""What quality_card.json holds. docs/formats/quality-card.md describes each field."""

import json
import math
from pathlib import Path
from typing import Any

from outrider.refactor.errors import InputError

JSON_NAME = "quality_card.json"
_NUMBER = (int, float)

# A type, a tuple of types, [element], {"field": ...}, or _Map for free names. A field that ends in ? may be missing or
# null.


class _Map:
    """An object with names of its own and values of one form."""

    def __init__(self, form: Any) -> None:
        self.form = form


_INTERVAL = {"value": _NUMBER, "low": _NUMBER, "high": _NUMBER}
_LOSS = {"nats": _NUMBER, "tokens": int, "bits_per_byte?": _NUMBER}
_SCORE = {"value": _NUMBER, "stderr": _NUMBER, "items": int}
_USE = {
    "load": [int],
    "entropy": _NUMBER,
    "imbalance?": _NUMBER,
    "stay_rate": _NUMBER,
    "run_mean": _NUMBER,
    "run_p50": int,
    "run_p90": int,
    "run_histogram": [int],
}
_ROW = {
    "name": str,
    "note?": str,
    "active": _NUMBER,
    "loss": str,
    "teacher?": str,
    "tokens": {"tuning": int, "router": int, "teacher": int},
    "seconds": _NUMBER,
    "seeds": [int],
    "domains": _Map(_LOSS),
    "unseen": _Map(_LOSS),
    "tasks": _Map(_Map(_SCORE)),
    "against_static?": _Map(_INTERVAL),
    "tasks_against_static?": _Map(_Map(_INTERVAL)),
}
_CARD = {
    "format": int,
    "title": str,
    "parent": {"name": str, "sha256": str, "parameters": int},
    "experts": {
        "count": int,
        "names": [str],
        "channels?": int,
        "channels_per_layer": [int],
        "selection": str,
        "tau": _NUMBER,
    },
    "router": {
        "width": int,
        "scale": str,
        "embed": str,
        "attention": bool,
        "parameters": int,
        "loss": str,
    },
    "sizes": {
        "active_parameters": int,
        "dense_bytes": int,
        "artifact_bytes": int,
        "router_bytes": int,
        "masks_bytes": int,
    },
    "rows": [_ROW],
    "routing?": {"all": _USE, "domains": _Map(_USE), "domain_agreement?": _NUMBER},
    "masks?": {
        "size": [_NUMBER],
        "permanent": _NUMBER,
        "union": _NUMBER,
        "dead": _NUMBER,
        "live_signatures": [int],
        "pairs": [[_NUMBER]],
        "swap": [[_NUMBER]],
    },
    "curve?": [{"label": str, "stay_rate": _NUMBER, "perplexity": _NUMBER}],
    "environment": _Map(str),
}


def check(card: Any, where: Path | str) -> dict[str, Any]:
    """The card itself. Every field is checked; unknown ones are errors, since nothing would print them.

    Raises:
        InputError: E_CARD naming the field, what it holds and what it should.
    """
    _check(card, _CARD, "card", where)
    if card["format"] != 1:
        raise InputError("E_CARD", where, "format", repr(card["format"]), "1")
    names = [row["name"] for row in card["rows"]]
    if not names or len(set(names)) != len(names):
        raise InputError("E_CARD", where, "rows", f"names {names}", "at least one row, each name once")
    for part in ("domains", "unseen"):
        first = list(card["rows"][0][part])
        for row in card["rows"]:
            if list(row[part]) != first:
                raise InputError(
                    "E_CARD", where, f"{row['name']}.{part}", f"{list(row[part])}", f"{first}, as all rows"
                )
    return card


def load(folder: Path) -> dict[str, Any]:
    """Reads and checks `FOLDER/quality_card.json`."""
    path = Path(folder) / JSON_NAME
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError("E_CARD", path, "card", str(error), "a quality card") from error
    return check(card, path)


def dump(card: dict[str, Any]) -> str:
    """The JSON text of a card; the same card gives the same bytes."""
    return json.dumps(card, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _check(value: Any, form: Any, at: str, where: Path | str) -> None:
    if isinstance(form, _Map):
        _require(isinstance(value, dict), value, "an object", at, where)
        for name, member in value.items():
            _check(member, form.form, f"{at}.{name}", where)
    elif isinstance(form, dict):
        _check_object(value, form, at, where)
    elif isinstance(form, list):
        _require(isinstance(value, list), value, "a list", at, where)
        for index, member in enumerate(value):
            _check(member, form[0], f"{at}[{index}]", where)
    else:
        kinds = form if isinstance(form, tuple) else (form,)
        fits = isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool))
        finite = not isinstance(value, float) or math.isfinite(value)
        _require(fits and finite, value, "a finite number" if form == _NUMBER else kinds[0].__name__, at, where)


def _check_object(value: Any, form: dict[str, Any], at: str, where: Path | str) -> None:
    _require(isinstance(value, dict), value, "an object", at, where)
    known = {name.removesuffix("?") for name in form}
    for name in value:
        _require(name in known, name, " ".join(sorted(known)), f"{at}.{name}", where)
    for name, inner in form.items():
        plain = name.removesuffix("?")
        if plain != name and value.get(plain) is None:
            continue
        if plain not in value:
            raise InputError("E_CARD", where, f"{at}.{plain}", "nothing", "this field")
        _check(value[plain], inner, f"{at}.{plain}", where)


def _require(good: bool, value: Any, expected: str, at: str, where: Path | str) -> None:
    if not good:
        raise InputError("E_CARD", where, at, repr(value)[:60], expected)
