"""Output folders that are either absent or complete."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from outrider.refactor.errors import InputError


@contextmanager
def atomic_folder(target: Path, *, force: bool = False, needed_bytes: int = 0) -> Iterator[Path]:
    """Yields `TARGET.partial`, an empty folder; at the end its files reach the disk and it is renamed to `target`.

    When the block raises, the partial folder is removed and `target` is as it was. A partial folder that a killed run
    left behind is replaced.

    Raises:
        InputError: E_EXISTS when `target` exists and `force` is off; E_DISK when less than `needed_bytes` are free or
            the parent folder cannot be written.
    """
    target = Path(target)
    if target.exists() and not force:
        raise InputError("E_EXISTS", target, "output", "an existing path", "none, or --force to replace it")
    partial = target.with_name(target.name + ".partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        require_space(target.parent, needed_bytes)
        remove(partial)
        partial.mkdir()
    except OSError as error:
        raise InputError("E_DISK", target.parent, "output", str(error), "a folder that can be written") from error
    try:
        yield partial
        _sync_tree(partial)
        _put_in_place(partial, target)
    except BaseException:
        remove(partial)
        raise


def write_file(path: Path, data: bytes | str) -> None:
    """Writes `NAME.tmp`, syncs it and renames it to `path`, so that no reader ever sees half a file."""
    path = Path(path)
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.write_bytes(data.encode("utf-8") if isinstance(data, str) else data)
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def require_space(folder: Path, needed_bytes: int) -> None:
    """Raises InputError E_DISK unless `needed_bytes` are free on the disk of `folder`, which need not exist yet."""
    free_bytes = shutil.disk_usage(next(place for place in (folder, *folder.parents) if place.exists())).free
    if free_bytes < needed_bytes:
        raise InputError("E_DISK", folder, "free space", f"{free_bytes} bytes", f"at least {needed_bytes} bytes")


def remove(path: Path) -> None:
    """Removes a file or a whole folder, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _put_in_place(partial: Path, target: Path) -> None:
    """A folder cannot be renamed onto a full one: the old one steps aside first and comes back if that fails."""
    aside = target.with_name(f"{target.name}.old-{os.getpid()}")
    replaced = target.exists()
    if replaced:
        target.rename(aside)
    try:
        partial.rename(target)
    except BaseException:
        if replaced:
            aside.rename(target)
        raise
    _sync(target.parent)
    if replaced:
        remove(aside)


def _sync_tree(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        _sync(path)
    _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
