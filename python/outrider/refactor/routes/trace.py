"""Reads a route trace. The format is docs/formats/routes.md."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from outrider.refactor.errors import InputError

FILE = "routes.safetensors"
_EXPECTED = "uint8 [tokens], [layers, tokens] or [layers, tokens, choices]"


@dataclass(frozen=True)
class RouteTrace:
    """`domains`: name -> uint8 [P, T, K]. P is the number of layers, or 1 when one id is used in all of them; K experts
    a token uses in a layer, best first. `per_layer`: whether layers choose for themselves."""

    path: Path
    split: str
    experts: int
    sequence: int
    per_layer: bool
    domains: dict[str, np.ndarray]

    @property
    def layers(self) -> int:
        return next(iter(self.domains.values())).shape[0]

    def texts(self, domain: str, layer: int) -> np.ndarray:
        """First choices [texts, sequence]."""
        return self.domains[domain][layer, :, 0].reshape(-1, self.sequence)


def find_trace(path: Path, row: str | None = None) -> Path:
    """The trace file that a path means: itself, that of a run of the core, or one of the rows of a refactored model,
    by default `layerwise` if it was run, else `ours`.

    Raises:
        InputError: E_TRACE when there is none.
    """
    path = Path(path)
    if path.is_file():
        return path
    rows = [row] if row else ["layerwise", "ours"]
    candidates = [path / "routes" / f"{name}.safetensors" for name in rows]
    candidates += [] if row else [path / FILE]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    found = sorted(file.stem for file in (path / "routes").glob("*.safetensors"))
    expected = f"{FILE} or routes/{rows[0]}.safetensors"
    raise InputError("E_TRACE", path, "trace", f"rows {', '.join(found)}" if found else "none", expected)


def load_trace(path: Path) -> RouteTrace:
    """Reads and checks a trace.

    Raises:
        InputError: E_TRACE for a file that cannot be read, a field or a tensor that does not fit.
    """
    from safetensors import safe_open

    try:
        with safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except Exception as error:  # the library raises its own and OS errors
        raise InputError("E_TRACE", path, "tensors", str(error)[:100], "a safetensors file") from error
    if metadata.get("format") != "1":
        raise InputError("E_TRACE", path, "format", repr(metadata.get("format")), "1")
    experts, sequence = (_positive(path, metadata, name) for name in ("experts", "sequence"))
    if not tensors:
        raise InputError("E_TRACE", path, "domains", "none", "at least one")
    first = next(iter(tensors.values()))
    for name, ids in tensors.items():
        _check(path, name, ids, experts, sequence)
        if ids.ndim != first.ndim or ids.shape[::2] != first.shape[::2]:
            raise InputError("E_TRACE", path, name, f"{list(ids.shape)}", f"layers and choices of {list(first.shape)}")
    domains = {name: ids.reshape(_planes(ids)) for name, ids in tensors.items()}
    return RouteTrace(Path(path), metadata.get("split", ""), experts, sequence, first.ndim > 1, domains)


def _planes(ids: np.ndarray) -> tuple[int, int, int]:
    if ids.ndim == 1:
        return 1, ids.shape[0], 1
    return ids.shape[0], ids.shape[1], 1 if ids.ndim == 2 else ids.shape[2]


def _positive(path: Path, metadata: dict[str, str], name: str) -> int:
    text = metadata.get(name, "")
    if not text.isdecimal() or int(text) < 1:
        raise InputError("E_TRACE", path, name, repr(text), "a positive integer")
    return int(text)


def _check(path: Path, name: str, ids: np.ndarray, experts: int, sequence: int) -> None:
    if ids.dtype != np.uint8 or ids.ndim not in (1, 2, 3) or ids.size == 0:
        raise InputError("E_TRACE", path, name, f"{ids.dtype} {list(ids.shape)}", _EXPECTED)
    if _planes(ids)[1] % sequence:
        raise InputError("E_TRACE", path, name, f"{_planes(ids)[1]} tokens", f"whole texts of {sequence}")
    if int(ids.max()) >= experts:
        raise InputError("E_TRACE", path, name, f"id {int(ids.max())}", f"ids below {experts}")
