"""A corpus that every machine has: the text of the running Python's standard library, as three domains.

`code` is the modules' source without docstrings and comments at the top, `docstrings` what they say about themselves,
`licences` the licence texts and copyright notices of Python and of the installed packages.
"""

import ast
import importlib.metadata
import os
import re
import sys
import sysconfig
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from outrider.refactor.atomic import atomic_folder
from outrider.refactor.errors import InputError

DOMAINS = ("code", "docstrings", "licences")
_SKIPPED = {"site-packages", "dist-packages", "test", "tests", "__pycache__", "lib2to3", "idlelib", "turtledemo"}
_LICENCE_NAME = re.compile(r"(?:^|[/.])(?:licen[cs]e|copying|notice|copyright)[^/]*$", re.IGNORECASE)
_LICENCE_BYTES_MAX = 262_144
_DOMAIN_BYTES_MAX = 8 << 20
_NOTICE = re.compile(r"copyright|licen[cs]e|permission", re.IGNORECASE)


def build(out: Path, *, force: bool = False, max_bytes: int = _DOMAIN_BYTES_MAX) -> dict[str, int]:
    """Writes `OUT/<domain>/<file>.txt`; returns the bytes of each domain, at most about `max_bytes`.

    Raises:
        InputError: E_DOMAIN when a domain has no text on this machine; E_EXISTS and E_DISK for `out`.
    """
    sizes = dict.fromkeys(DOMAINS, 0)
    with atomic_folder(out, force=force, needed_bytes=len(DOMAINS) * max_bytes) as folder:
        for domain, texts in zip(DOMAINS, (_code(), _documentation(), _licences()), strict=True):
            (folder / domain).mkdir()
            for name, text in texts:
                data = text.encode("utf-8", errors="replace")
                if data.strip():
                    (folder / domain / f"{name}.txt").write_bytes(data)
                    sizes[domain] += len(data)
                if sizes[domain] >= max_bytes:
                    break
            if not sizes[domain]:
                raise InputError("E_DOMAIN", sysconfig.get_path("stdlib"), domain, "no text", "some")
    return sizes


def _code() -> Iterator[tuple[str, str]]:
    for name, source in _modules():
        with suppress(SyntaxError):
            yield name, _without_docstrings(_header(source)[1])


def _documentation() -> Iterator[tuple[str, str]]:
    for name, source in _modules():
        with suppress(SyntaxError):
            yield name, "\n\n".join(_docstrings(ast.parse(source)))


def _licences() -> Iterator[tuple[str, str]]:
    """Each text once: many modules and packages carry the same one."""
    seen: set[str] = set()
    notices = (_header(source)[0] for _, source in _modules())
    yield "notices", "\n\n".join(dict.fromkeys(notice for notice in notices if _NOTICE.search(notice)))
    for name, text in _licence_files():
        if text not in seen:
            seen.add(text)
            yield name, text


def _modules() -> Iterator[tuple[str, str]]:
    """(dotted name, source), the same order on every run; sources in other encodings are left out."""
    root = sysconfig.get_path("stdlib")
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(set(folders) - _SKIPPED)
        for path in (Path(folder, file) for file in sorted(files) if file.endswith(".py")):
            try:
                source = path.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError):
                continue
            yield path.relative_to(root).with_suffix("").as_posix().replace("/", "."), source


def _header(source: str) -> tuple[str, str]:
    """The comment lines at the top without their marks, and the rest."""
    lines = source.splitlines()
    end = next((i for i, line in enumerate(lines) if line.strip() and not line.startswith("#")), len(lines))
    head = "\n".join(line.lstrip("#!").strip() for line in lines[:end]).strip()
    return head, "\n".join(lines[end:]) + "\n"


def _docstrings(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield text


def _without_docstrings(source: str) -> str:
    """Removes the lines of docstrings, which the other domain holds, and keeps all other text as it is."""
    tree = ast.parse(source)
    dropped: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.body:
            first = node.body[0]
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                dropped.update(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    return "\n".join(line for number, line in enumerate(source.splitlines(), 1) if number not in dropped)


def _licence_files() -> Iterator[tuple[str, str]]:
    """Of Python itself, of the wheels it brings along, and of the installed packages."""
    folders = (Path(sysconfig.get_path("stdlib")), Path(sys.base_prefix), Path(sys.base_prefix) / "share/doc/python3")
    for folder in folders:
        for path in sorted(folder.glob("*")):
            if _LICENCE_NAME.search("/" + path.name) and path.is_file() and path.suffix != ".py":
                yield f"python-{path.stem}", path.read_text(encoding="utf-8", errors="replace")[:_LICENCE_BYTES_MAX]
    bundled = Path(sysconfig.get_path("stdlib")) / "ensurepip" / "_bundled"
    for wheel in sorted([*bundled.glob("*.whl"), *Path("/usr/share/python-wheels").glob("*.whl")]):
        with zipfile.ZipFile(wheel) as archive:
            for name in sorted(filter(_LICENCE_NAME.search, archive.namelist())):
                if not name.endswith(".py"):
                    yield (
                        _file_name(wheel.stem, name),
                        archive.read(name)[:_LICENCE_BYTES_MAX].decode("utf-8", "replace"),
                    )
    found = {str(d.metadata["Name"]): d for d in importlib.metadata.distributions() if d.metadata["Name"]}
    for package, distribution in sorted(found.items()):
        for file in sorted(filter(_LICENCE_NAME.search, map(str, distribution.files or []))):
            path = Path(str(distribution.locate_file(file)))
            if not file.endswith((".py", ".pyc")) and path.is_file():
                text = path.read_text(encoding="utf-8", errors="replace")
                yield _file_name(package, file), text[:_LICENCE_BYTES_MAX]


def _file_name(owner: str, path: str) -> str:
    return re.sub(r"[^A-Za-z0-9.-]+", "_", f"{owner}-{path.replace('/', '-')}")[:150]
