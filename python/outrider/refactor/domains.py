"""Which files build which domain: a folder tree, or a table."""

import os
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

from outrider.refactor.documents import format_of
from outrider.refactor.errors import InputError

DEFAULT_TABLE = "default"


@dataclass(frozen=True)
class DomainFiles:
    """Names of files relative to `root`. `unseen` domains are never trained on: all of their text is test split."""

    root: Path
    domains: dict[str, list[str]]
    unseen: dict[str, list[str]] = field(default_factory=dict)

    @property
    def all(self) -> dict[str, list[str]]:
        return {**self.domains, **self.unseen}


def from_folder(root: Path) -> DomainFiles:
    """Every subfolder with text files is a domain; a folder without such subfolders is one domain of its own name.

    Raises:
        InputError: E_DATA when there is no text file, or text files lie beside the domains' folders.
    """
    root = Path(root)
    if not root.is_dir():
        raise InputError("E_DATA", root, "folder", "nothing", "a folder of .txt or .jsonl files")
    files = sorted(_text_files(root))
    if not files:
        raise InputError("E_DATA", root, "folder", "no text file", ".txt or .jsonl files, also .xz, .bz2 or .gz")
    loose = [name for name in files if "/" not in name]
    if loose and len(loose) < len(files):
        raise InputError("E_DATA", root, loose[0], "a file beside the domains' folders", "each file in a domain folder")
    if loose:
        name = "".join(c if c.isalnum() or c in "-_" else "-" for c in root.resolve().name) or "text"
        return DomainFiles(root, {name: files})
    domains: dict[str, list[str]] = {}
    for name in files:
        domains.setdefault(_domain_name(root, name.split("/")[0]), []).append(name)
    return DomainFiles(root, domains)


def _text_files(root: Path) -> Iterator[str]:
    """Names below `root`, links followed, but not back to a folder that the way has come through."""

    def refuse(error: OSError) -> None:
        raise InputError("E_DATA", error.filename, "folder", error.strerror, "a folder that can be read") from error

    for folder, folders, names in os.walk(root, onerror=refuse, followlinks=True):
        inside = Path(folder)
        way = {
            root.resolve(),
            *((root / part).resolve() for part in inside.relative_to(root).parents),
            inside.resolve(),
        }
        folders[:] = [name for name in folders if (inside / name).resolve() not in way]
        for path in (inside / name for name in names if format_of(name)):
            if path.is_file() or path.is_symlink():  # one that leads nowhere is named when it is read
                yield path.relative_to(root).as_posix()


def from_table(table: str | Path, root: Path | None = None) -> DomainFiles:
    """Reads a domain table; `default` names the one that comes along.

    TOML: `[domains]` and, optionally, `[unseen]`, each `name = ["file or pattern", ...]`. Any other ending: a line
    `domain<TAB>file` each, `#` starts a comment. Files are relative to `root`, without it to the table's folder.

    Raises:
        InputError: E_DOMAINS for a malformed table or a pattern that no file fits, all of those listed.
    """
    if str(table) == DEFAULT_TABLE:
        path = Path(str(resources.files("outrider.refactor") / "domains_default.toml"))
        if root is None:
            raise InputError("E_DOMAINS", path, "--data", "nothing", "the folder that the default table's files lie in")
    else:
        path = Path(table)
    root = path.parent if root is None else Path(root)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError("E_DOMAINS", path, "table", str(error), "a readable file") from error
    domains, unseen = _parse_toml(path, text) if path.suffix == ".toml" else (_parse_tsv(path, text), {})
    if not domains:
        raise InputError("E_DOMAINS", path, "domains", "none", "at least one")
    if both := sorted(domains.keys() & unseen.keys()):
        raise InputError("E_DOMAINS", path, both[0], "a domain that is also unseen", "one of the two")
    missing: list[str] = []
    resolved = [_resolve(path, root, group, missing) for group in (domains, unseen)]
    if missing:
        raise InputError("E_DOMAINS", path, "files", f"no file for {', '.join(missing)}", f"each one in {root}")
    return DomainFiles(root, *resolved)


def _parse_toml(path: Path, text: str) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError("E_DOMAINS", path, "table", str(error), "TOML") from error
    if unknown := sorted(table.keys() - {"domains", "unseen"}):
        raise InputError("E_DOMAINS", path, unknown[0], "an unknown section", "[domains] or [unseen]")
    groups = (table.get("domains", {}), table.get("unseen", {}))
    for name, files in (item for group in groups for item in group.items()):
        if not isinstance(files, list) or not files or not all(isinstance(file, str) for file in files):
            raise InputError("E_DOMAINS", path, name, repr(files)[:60], "a list of file names")
    return groups


def _parse_tsv(path: Path, text: str) -> dict[str, list[str]]:
    domains: dict[str, list[str]] = {}
    for number, line in enumerate(text.splitlines(), 1):
        line = line.split("#")[0].rstrip()
        if not line:
            continue
        fields = line.split("\t")
        if len(fields) != 2 or not all(fields):
            raise InputError("E_DOMAINS", path, f"line {number}", repr(line[:60]), "domain<TAB>file")
        domains.setdefault(fields[0], []).append(fields[1])
    return domains


def _resolve(path: Path, root: Path, group: dict[str, list[str]], missing: list[str]) -> dict[str, list[str]]:
    resolved: dict[str, list[str]] = {}
    for name, patterns in group.items():
        files: list[str] = []
        for pattern in patterns:
            if Path(pattern).is_absolute() or ".." in Path(pattern).parts:
                raise InputError("E_DOMAINS", path, name, repr(pattern), f"a file inside {root}")
            found = sorted(p.relative_to(root).as_posix() for p in root.glob(pattern) if p.is_file())
            if not found:
                missing.append(pattern)
            for file in found:
                if format_of(file) is None:
                    raise InputError("E_DOMAINS", path, file, "an unknown ending", ".txt or .jsonl, also compressed")
            files += [file for file in found if file not in files]
        resolved[_domain_name(path, name)] = files
    return resolved


def _domain_name(where: Path, name: str) -> str:
    """Names become file names and table columns."""
    if not name or not all(c.isalnum() or c in "-_" for c in name):
        raise InputError("E_DOMAINS", where, repr(name), "this domain name", "letters, digits, - and _ only")
    return name
