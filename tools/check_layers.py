#!/usr/bin/env python3
"""Checks what keeps the tree readable: include edges, torch includes, sizes, unfinished marks.

    check_layers.py [ROOT]

Prints one line `file:line: message` per violation and exits with 1 if there is any. The allowed edges are in
cmake/layers.txt. Needs nothing but the standard library.
"""

from __future__ import annotations

import ast
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cxx_text

FILE_LINES_MAX = 400
FUNCTION_LINES_MAX = 60
TORCH_UNITS_MAX = 60

CODE_FOLDERS = ("src", "include", "bindings", "python", "tests", "tools", "benchmarks", "examples", "cmake")
CODE_SUFFIXES = (".h", ".cc", ".py", ".cmake", ".sh")
UNFINISHED = re.compile(r"\b(?:TO[D]O|FIX[M]E)\b")

TORCH_HEADER = re.compile(r"^(?:torch|ATen|c10|caffe2)/")
WHOLE_TORCH = ("torch/extension.h", "torch/torch.h", "torch/all.h")
# Dispatcher, TensorImpl, autograd and allocator internals.
TORCH_INTERNAL = re.compile(
    r"^(?:torch/csrc/|torch/library\.h|ATen/core/dispatch/|ATen/core/boxing/|ATen/core/LegacyTypeDispatch|ATen/detail/"
    r"|c10/core/impl/|c10/core/(?:TensorImpl|UndefinedTensorImpl|StorageImpl|Allocator|CachingDeviceAllocator"
    r"|CPUAllocator|DispatchKey|DispatchKeySet|AutogradState)\.h"
    r"|c10/cuda/CUDACachingAllocator)"
)
PUBLIC_EXCEPTION = ("torch/csrc/autograd/custom_function.h",)
PYTHON_SIDE = re.compile(
    r"^torch/csrc/(?:utils/|autograd/python_|python_headers\.h|Exceptions\.h|THP\.h|DynamicTypes\.h|Generator\.h)"
)
CORE_HEADER = re.compile(r"^(?:c10/|ATen/core/)")


@dataclass(frozen=True)
class Violation:
    path: Path
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.message}"


@dataclass(frozen=True)
class Room:
    name: str
    edges: frozenset[str]
    torch: str


class Tree:
    """The files under one root, read once, and the rooms of its layers.txt."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.rooms = read_layers(root / "cmake" / "layers.txt")
        self.texts = {path: (root / path).read_text(encoding="utf-8") for path in self._code_files()}
        self.includes = {
            path: cxx_text.includes(text) for path, text in self.texts.items() if path.suffix in (".h", ".cc")
        }

    def _code_files(self) -> list[Path]:
        found = [p for folder in CODE_FOLDERS for p in (self.root / folder).rglob("*") if p.suffix in CODE_SUFFIXES]
        found += [p for p in (self.root / "Makefile", self.root / "CMakeLists.txt") if p.exists()]
        relative = (p.relative_to(self.root) for p in found if p.is_file())
        return sorted(p for p in relative if "__pycache__" not in p.parts and p.name != "_built_for.py")

    def room_of(self, path: Path) -> str | None:
        """The room whose rules hold for a file; None for tests, examples and the like."""
        if path.parts[0] == "src":
            return path.parts[1] if len(path.parts) > 2 else ""
        return path.parts[0] if path.parts[0] in ("include", "bindings") else None

    def resolve(self, includer: Path, name: str) -> Path | None:
        """The file of this tree that an #include names, None for a foreign header."""
        folders = (includer.parent, Path("src"), Path("include"), Path("tests"))
        candidates = (Path(os.path.normpath(folder / name)) for folder in folders)
        return next((path for path in candidates if path in self.includes), None)


def read_layers(path: Path) -> dict[str, Room]:
    """Reads layers.txt; a room may name only rooms of lines above it, which keeps the edges free of cycles."""
    rooms: dict[str, Room] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        line = line.split("#")[0].strip()
        if not line:
            continue
        fields = [field.strip() for field in line.split(":")]
        if len(fields) != 3 or fields[2] not in ("none", "seam", "core", "public", "binding"):
            raise SystemExit(f"{path}:{number}: expected `<room> : <rooms> : none|seam|core|public|binding`")
        name, edges, torch = fields[0], frozenset(fields[1].split()), fields[2]
        unknown = sorted(edges - rooms.keys())
        if unknown:
            raise SystemExit(f"{path}:{number}: {name} names {', '.join(unknown)}, which no line above defines")
        rooms[name] = Room(name, edges, torch)
    return rooms


def check_rooms_known(tree: Tree) -> Iterator[Violation]:
    for folder in sorted({p.parts[1] for p in tree.includes if p.parts[0] == "src" and len(p.parts) > 2}):
        if folder not in tree.rooms:
            yield Violation(Path("src") / folder, 1, f"room {folder} has no line in cmake/layers.txt")
    for path in tree.includes:
        if tree.room_of(path) == "":
            yield Violation(path, 1, "a source file lies in src/ itself, in no room")


def check_edges(tree: Tree) -> Iterator[Violation]:
    for path, found in tree.includes.items():
        room = tree.rooms.get(tree.room_of(path) or "")
        if room is None:
            continue
        for line, name in found:
            target = tree.resolve(path, name)
            other = tree.room_of(target) if target else None
            if other in (None, room.name, "include") or other in room.edges:
                continue
            yield Violation(path, line, f"room {room.name} must not include room {other} ({name})")


def check_torch_includes(tree: Tree) -> Iterator[Violation]:
    for path, found in tree.includes.items():
        room = tree.rooms.get(tree.room_of(path) or "")
        for line, name in found:
            if not TORCH_HEADER.match(name):
                continue
            if name in WHOLE_TORCH and path.parts[0] not in ("tests", "examples"):
                yield Violation(path, line, f"{name} is allowed in tests and examples only")
            elif room is not None and not torch_allowed(room.torch, name):
                yield Violation(path, line, f"room {room.name} (torch: {room.torch}) must not include {name}")


def torch_allowed(sight: str, name: str) -> bool:
    """Whether a room that sees `sight` of torch (last column of layers.txt) may include the torch header `name`."""
    internal = TORCH_INTERNAL.match(name) is not None
    if sight == "seam":
        return True
    if sight == "core":
        return CORE_HEADER.match(name) is not None and not internal
    if sight == "binding" and PYTHON_SIDE.match(name):
        return True
    return sight in ("public", "binding") and (not internal or name in PUBLIC_EXCEPTION)


def check_torch_units(tree: Tree) -> Iterator[Violation]:
    """Counts units that see torch, directly or through our own headers: each costs seconds of every full build."""
    sees_torch: dict[Path, bool] = {}

    def sees(path: Path) -> bool:
        if path not in sees_torch:
            sees_torch[path] = False  # an include cycle ends here
            targets = [(name, tree.resolve(path, name)) for _, name in tree.includes[path]]
            sees_torch[path] = any(sees(target) if target else bool(TORCH_HEADER.match(n)) for n, target in targets)
        return sees_torch[path]

    units = [p for p in tree.includes if p.suffix == ".cc" and p.parts[0] in ("src", "bindings") and sees(p)]
    if len(units) > TORCH_UNITS_MAX:
        yield Violation(Path("src"), 1, f"{len(units)} units see torch, at most {TORCH_UNITS_MAX} may")


def check_names(tree: Tree) -> Iterator[Violation]:
    for path, text in tree.texts.items():
        if "torch" in path.parent.parts:
            yield Violation(path, 1, "no folder may be named torch: it shadows torch's own headers")
        if path not in tree.includes:
            continue
        for number, line in enumerate(cxx_text.blank(text).splitlines(), 1):
            if re.search(r"\bnamespace\s+(?:\w+::)*torch\b", line) and path.parts[0] in ("src", "include", "bindings"):
                yield Violation(path, number, "no namespace may be named torch")
        for line_number, name in tree.includes[path]:
            if path.suffix == ".h" and name.startswith("fmt/"):
                yield Violation(path, line_number, "fmt belongs in .cc files only: torch's include path has its own")


def check_sizes(tree: Tree) -> Iterator[Violation]:
    for path, text in tree.texts.items():
        lines = len(text.splitlines())
        if lines > FILE_LINES_MAX:
            yield Violation(path, lines, f"file has {lines} lines, at most {FILE_LINES_MAX} are allowed")
        for function in functions_of(path, text):
            if function.lines > FUNCTION_LINES_MAX:
                size = f"{function.lines} lines, at most {FUNCTION_LINES_MAX} are allowed"
                yield Violation(path, function.first, f"function {function.name} has {size}")


def functions_of(path: Path, text: str) -> list[cxx_text.Function]:
    if path.suffix in (".h", ".cc"):
        return cxx_text.functions(text)
    if path.suffix != ".py":
        return []
    nodes = (n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))
    return [cxx_text.Function(n.name, n.lineno, n.end_lineno or n.lineno) for n in nodes]


def check_unfinished(tree: Tree) -> Iterator[Violation]:
    for path, text in tree.texts.items():
        for number, line in enumerate(text.splitlines(), 1):
            mark = UNFINISHED.search(line)
            if mark:
                yield Violation(path, number, f"unfinished mark {mark.group()}")


CHECKS = (
    check_rooms_known,
    check_edges,
    check_torch_includes,
    check_torch_units,
    check_names,
    check_sizes,
    check_unfinished,
)


def violations(root: Path) -> list[Violation]:
    """Everything that is wrong in the tree at `root`, in the order of CHECKS."""
    tree = Tree(root)
    return [violation for check in CHECKS for violation in check(tree)]


def main(arguments: list[str]) -> int:
    root = Path(arguments[0]) if arguments else Path(__file__).resolve().parents[1]
    found = violations(root)
    for violation in found:
        print(violation)
    print(f"layers: {len(found)} violation(s)" if found else "layers: clean")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
