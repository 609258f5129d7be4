"""The TraceGraph as text, and as a picture.

The native core writes the text forms; pictures come from Graphviz.
"""

import shutil
import subprocess
from pathlib import Path

from outrider import _runtime

FORMATS = ("text", "dot", "mermaid")
_EMPTY = {"text": "", "dot": "digraph coexec {\n}\n", "mermaid": "flowchart TD\n"}
_FORMAT_OF_SUFFIX = {".txt": "text", ".dot": "dot", ".gv": "dot", ".mmd": "mermaid", ".svg": "dot"}
_GRAPHVIZ_DEADLINE_S = 120


def graph(fmt: str = "text", lane: str = "inner") -> str:
    """The TraceGraph of this process: every recorded path, with its blocks, branches, feeds and fetches.

    Args:
        fmt: ``"text"``, ``"dot"`` (Graphviz) or ``"mermaid"``.
        lane: ``"inner"`` for device operations, ``"outer"`` for the events of the program.

    Raises:
        ValueError: any other ``fmt`` or ``lane``.
    """
    if fmt not in FORMATS:
        raise ValueError(f"fmt is one of {', '.join(FORMATS)}, not {fmt!r}")
    if lane not in ("inner", "outer"):
        raise ValueError(f"lane is inner or outer, not {lane!r}")
    return _runtime.core().graph(fmt, lane) if _runtime.enabled() else _EMPTY[fmt]


def save_graph(path: str | Path, lane: str = "inner") -> Path:
    """Writes the TraceGraph; the suffix decides: ``.txt``, ``.dot`` or ``.gv``, ``.mmd``, ``.svg``.

    Raises:
        ValueError: any other suffix.
        RuntimeError: ``.svg`` without Graphviz, or Graphviz failed; the message holds what it said.
    """
    path = Path(path)
    fmt = _FORMAT_OF_SUFFIX.get(path.suffix.lower())
    if fmt is None:
        raise ValueError(f"{path.name}: the suffix is one of {', '.join(_FORMAT_OF_SUFFIX)}")
    text = graph(fmt, lane)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix.lower() == ".svg":
        path.write_bytes(_render_svg(text))
    else:
        path.write_text(text, encoding="utf-8")
    return path


def _render_svg(dot: str) -> bytes:
    program = shutil.which("dot")
    if program is None:
        raise RuntimeError("an SVG needs Graphviz (the `dot` program); .dot and .mmd files do not")
    try:
        done = subprocess.run(
            [program, "-Tsvg"], input=dot.encode(), capture_output=True, timeout=_GRAPHVIZ_DEADLINE_S, check=False
        )
    except subprocess.TimeoutExpired as timeout:
        raise RuntimeError(
            f"Graphviz did not finish within {_GRAPHVIZ_DEADLINE_S} s; save the graph as .dot instead"
        ) from timeout
    if done.returncode != 0:
        raise RuntimeError(f"Graphviz failed: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout
