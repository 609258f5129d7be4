"""The why table: what was covered in each step, and in plain words why the rest was not."""

import json
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from outrider import _runtime
from outrider.reasons import describe

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

Row = dict[str, Any]

_PLAIN_WIDTH = 132
_WIDE = 120
_MAX_PLACES_PER_CODE = 3
_CODE_AT_START = re.compile(r"(INNER|OFF|FLUSH|DIV)_[A-Z_]+")


def explain(last: int | None = 10, file: IO[str] | None = None) -> list[Row]:
    """Prints the why table of the ``last`` finished steps (None: all kept) and returns their rows.

    Below the table: the share of device operations that the graph runner ran, and every reason code that
    occurred, with its meaning, a remedy, and the line of the program it comes from.

    Args:
        last: number of steps.
        file: where to print; default: standard output, in a notebook the cell's output.
    """
    if not _runtime.enabled():
        _console(file).print("Co-execution is switched off: OUTRIDER=0 in the environment.")
        return []
    rows = list(_runtime.core().rows())
    rows = rows if last is None else rows[max(0, len(rows) - last) :]
    print_rows(rows, file)
    return rows


def print_rows(rows: list[Row], file: IO[str] | None = None) -> None:
    """Prints the why table of given rows, which may come from a file."""
    console = _console(file)
    if rows:
        console.print(_table(rows, console.width))
    for line in summary_lines(rows):
        console.print(line, markup=False, soft_wrap=True)


def save_rows(path: str | Path, rows: list[Row]) -> Path:
    """Writes rows as JSON: an object with the single key ``rows``."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"rows": rows}, indent=1), encoding="utf-8")
    return path


def load_rows(path: str | Path) -> list[Row]:
    """Reads what :func:`save_rows` wrote. A bare list of rows, as ``json.dump(outrider.report())`` gives, is fine too.

    Raises:
        ValueError: the file is not such a report.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    rows = content.get("rows") if isinstance(content, dict) else content
    if not isinstance(rows, list) or not all(isinstance(row, dict) and "step" in row for row in rows):
        raise ValueError(f"{path} is not an outrider report")
    return rows


def summary_lines(rows: list[Row]) -> list[str]:
    """The plain-language part: one paragraph of coverage, then one paragraph for each reason code."""
    if not rows:
        return ["No step has finished yet. Wrap the loop body with outrider.coexec, or use `with outrider.step():`."]
    lines = [_coverage_line(rows)]
    inline = Counter[str]()
    for row in rows:
        inline.update(row.get("inline_ops") or {})
    if inline:
        listed = ", ".join(f"{name} ({count})" for name, count in inline.most_common(6))
        lines.append(f"Ran on the host, not covered: {listed}.")
    for code, occurrences in _reason_counts(rows).most_common():
        lines += _reason_lines(code, occurrences, rows)
    return lines


def _coverage_line(rows: list[Row]) -> str:
    first, last = rows[0]["step"], rows[-1]["step"]
    steps = f"Step {first}" if first == last else f"Steps {first} to {last}"
    device_ops = sum(row["device_ops"] for row in rows)
    covered_ops = sum(row["covered_ops"] for row in rows)
    off = all(row["lane"] == "off" for row in rows)  # nobody counted
    if device_ops == 0 and not off:
        return f"{steps}: no device operations."
    if covered_ops == 0:
        return f"{steps}: nothing was covered, because {_why_nothing(rows)}"
    share = 100.0 * covered_ops / device_ops
    return f"{steps}: the graph runner ran {covered_ops:,} of {device_ops:,} device operations ({share:.1f} %)."


def _why_nothing(rows: list[Row]) -> str:
    lanes = Counter(row["lane"] for row in rows)
    commonest = lanes.most_common(1)[0][0]
    notes = [row["note"] for row in rows if row.get("note") and row["lane"] == commonest]
    because = f" ({notes[-1]})" if notes else ""
    if commonest == "record":
        return (
            f"{lanes['record']} of {len(rows)} steps were recordings{because}. "
            "Covering starts once recordings of the same path agree, usually within four steps."
        )
    if commonest == "off":
        return f"co-execution was off for {lanes['off']} of {len(rows)} steps{because}."
    return f"the program left every plan before its first operation{because}; see the reasons below."


def _reason_counts(rows: list[Row]) -> Counter[str]:
    """Occurrences of each code: flushes and divergences by number, notes once a step."""
    counts = Counter[str]()
    for row in rows:
        counts.update(row.get("flushes") or {})
        counts.update(divergence["code"] for divergence in row.get("divergences") or ())
        counts.update(_note_codes(row))
    return counts


def _note_codes(row: Row) -> list[str]:
    match = _CODE_AT_START.match(row.get("note") or "")
    return [match.group()] if match else []


def _reason_lines(code: str, occurrences: int, rows: list[Row]) -> list[str]:
    reason = describe(code)
    lines = ["", f"{code} ({occurrences}): {reason.meaning}"]
    if reason.remedy:
        lines.append(f"  Remedy: {reason.remedy}")
    places = Counter(_places(code, rows))
    for place, count in places.most_common(_MAX_PLACES_PER_CODE):
        lines.append(f"  {place}" + (f" ({count} times)" if count > 1 else ""))
    hidden = len(places) - _MAX_PLACES_PER_CODE
    if hidden > 0:
        lines.append(f"  ... and {hidden} more places")
    return lines


def _places(code: str, rows: list[Row]) -> Iterable[str]:
    """Where a code came from: the user's line of a divergence, or the text of a note."""
    for row in rows:
        for divergence in row.get("divergences") or ():
            if divergence["code"] == code:
                yield _divergence_text(divergence)
        if code in _note_codes(row):
            detail = row["note"][len(code) :].lstrip(": ")
            if detail:
                yield detail


def _divergence_text(divergence: dict[str, Any]) -> str:
    text = f"at {divergence['where']}" if divergence.get("where") else f"at event {divergence['event']}"
    expected, got = divergence.get("expected"), divergence.get("got")
    if expected or got:
        field = f"{divergence['field']} " if divergence.get("field") else ""
        text += f": {field}was {got or 'nothing'}, recorded {expected or 'nothing'}"
    return text


# Heading, alignment, and whether a narrow terminal does without the column.
_COLUMNS = (
    ("step", "right", False),
    ("name", "left", True),
    ("lane", "left", False),
    ("tier", "left", False),
    ("events", "right", True),
    ("device\nops", "right", False),
    ("covered\n%", "right", False),
    ("feeds", "right", True),
    ("fetches", "right", True),
    ("flushes", "left", False),
    ("divergences", "left", False),
    ("host\nms", "right", False),
    ("waits ms\nhost / runner", "right", True),
)


def _table(rows: list[Row], width: int) -> "Table":
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    table = Table(
        title="coexec: what was covered, and why not", box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True
    )
    shown = [index for index, (_, _, wide_only) in enumerate(_COLUMNS) if width >= _WIDE or not wide_only]
    for index in shown:
        heading, justify, _ = _COLUMNS[index]
        may_wrap = heading in ("name", "flushes", "divergences")
        table.add_column(heading, justify=justify, no_wrap=not may_wrap, overflow="fold")
    for row in rows:
        cells = _cells(row)
        table.add_row(*(escape(cells[index]) for index in shown))
    return table


def _cells(row: Row) -> tuple[str, ...]:
    flushes = (f"{_short(code)} {count}" for code, count in (row.get("flushes") or {}).items())
    divergences = (
        f"{_short(divergence['code'])} at {divergence['event']}" for divergence in row.get("divergences") or ()
    )
    return (
        str(row["step"]),
        row["name"],
        row["lane"],
        row["tier"],
        str(row["events"]),
        "-" if row["lane"] == "off" else str(row["device_ops"]),
        "-" if row["lane"] == "off" else f"{100.0 * row['covered_share']:.1f}",
        str(row["feeds"]),
        str(row["fetches"]),
        "\n".join(flushes),
        "\n".join(divergences),
        f"{row['host_us'] / 1000.0:.2f}",
        f"{row['host_wait_us'] / 1000.0:.2f} / {row['runner_wait_us'] / 1000.0:.2f}",
    )


def _short(code: str) -> str:
    """FLUSH_FETCH -> FETCH: the column heading says the rest."""
    return code.partition("_")[2]


def _console(file: IO[str] | None) -> "Console":
    """A terminal has its own width; files, pipes and notebooks get one that shows the whole table."""
    from rich.console import Console

    console = Console(file=file, highlight=False)
    if not console.is_terminal:
        console.width = _PLAIN_WIDTH
    return console
