"""Kill switch and lazy access to the native core.

Everything in this package reaches ``outrider._core`` through :func:`core`, so that with
``OUTRIDER=0`` neither torch nor the core is ever loaded.
"""

import atexit
import importlib
import os
import sys
from types import ModuleType

_core: ModuleType | None = None
_forked = False


def enabled() -> bool:
    """False when the environment says ``OUTRIDER=0``. Read on every call, so a script may still set it."""
    return os.environ.get("OUTRIDER", "1") != "0"


def core() -> ModuleType:
    """The native core, loaded on first use. torch comes first: the core links against its libraries.

    Raises:
        ImportError: the core has not been built, or does not fit the installed torch.
    """
    global _core
    if _core is None:
        importlib.import_module("torch")
        _core = importlib.import_module("outrider._core")
        atexit.register(_shut_down)
    return _core


def _shut_down() -> None:
    """Stops the graph runner thread while the interpreter still works. A forked child has no such thread.

    An error of the last operations, for which nobody waited, is shown as one that ends a program is.
    """
    if _forked:
        return
    try:
        core().flush()
    except Exception as error:
        sys.excepthook(type(error), error, error.__traceback__)
    core().shutdown()


def in_forked_child() -> bool:
    """True in a process forked after the core was loaded: its graph runner thread did not survive the fork."""
    return _forked


def mark_forked_child() -> None:
    """Called once in a forked child. From then on its steps run plainly."""
    global _forked
    _forked = True
