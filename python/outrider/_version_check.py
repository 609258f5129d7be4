"""Refuses a torch that outrider was not made for, before any compiled code is loaded."""

from __future__ import annotations

import importlib
import importlib.util

SUPPORTED_MINORS = ("2.11", "2.13")


def minor_of(version: str) -> str:
    """`"2.13.0+cpu"` -> `"2.13"`."""
    return ".".join(version.split("+")[0].split(".")[:2])


def built_for() -> str | None:
    """The torch version that the extension module was compiled against; None when nothing has been built."""
    name = f"{__package__}._built_for"
    if importlib.util.find_spec(name) is None:
        return None
    return importlib.import_module(name).TORCH_VERSION


def require_torch() -> None:
    """Raises ImportError, with a message of one line, unless the installed torch is one that outrider can run with.

    Checks that torch is there, that its minor version is supported, and that it is the minor version the extension
    module was compiled against.
    """
    supported = " or ".join(SUPPORTED_MINORS)
    if importlib.util.find_spec("torch") is None:
        raise ImportError(f"outrider needs PyTorch {supported}, but no torch is installed")

    found = str(importlib.import_module("torch").__version__)
    if minor_of(found) not in SUPPORTED_MINORS:
        raise ImportError(f"outrider needs PyTorch {supported}, but torch {found} is installed")

    compiled = built_for()
    if compiled is not None and minor_of(compiled) != minor_of(found):
        raise ImportError(
            f"outrider was compiled for torch {compiled}, but torch {found} is installed: "
            "rebuild with `pip install --no-build-isolation --force-reinstall --no-deps .`"
        )
