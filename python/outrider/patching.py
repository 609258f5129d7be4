"""Replacing attributes of other people's modules, so that it can be undone."""

from collections.abc import Callable
from typing import Any

_INHERITED = object()


class PatchSet:
    """Owns a set of replaced attributes. Not thread-safe: install and remove from one thread."""

    def __init__(self) -> None:
        self._replaced: list[tuple[Any, str, Any, Any]] = []

    def __len__(self) -> int:
        return len(self._replaced)

    def wrap(self, owner: Any, name: str, wrap: Callable[[Any], Any], also_in: tuple[Any, ...] = ()) -> bool:
        """Replaces ``owner.name`` by ``wrap(original)``, and what the namespaces ``also_in`` hold under the same
        name: an alias by the same replacement, somebody else's wrapper by a replacement of its own.

        Returns False, changing nothing, if the attribute does not exist (torch versions and builds differ)
        or cannot be set (types written in C).
        """
        original = getattr(owner, name, None)
        if original is None:
            return False
        replacement = wrap(original)
        if not self._set(owner, name, replacement):
            return False
        for namespace in also_in:
            other = getattr(namespace, name, None)
            if other is not None:
                self._set(namespace, name, replacement if other is original else wrap(other))
        return True

    def remove(self) -> None:
        """Puts the originals back, newest first; leaves alone what somebody else has replaced since."""
        while self._replaced:
            owner, name, previous, replacement = self._replaced.pop()
            if vars(owner).get(name) is not replacement:
                continue
            if previous is _INHERITED:
                delattr(owner, name)
            else:
                setattr(owner, name, previous)

    def _set(self, owner: Any, name: str, replacement: Any) -> bool:
        previous = vars(owner).get(name, _INHERITED)
        try:
            setattr(owner, name, replacement)
        except (AttributeError, TypeError):
            return False
        self._replaced.append((owner, name, previous, replacement))
        return True
