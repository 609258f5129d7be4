"""Co-executes a training script that knows nothing of Outrider.

Steps are found by the optimizer: each ``optimizer.step()`` ends a step, and the next begins right there.
What comes before the first one (imports, model construction, the first iteration) runs plainly. With two
optimizers a loop body simply becomes two steps; evaluation between two steps belongs to the following
one, as another path. A script that marks its own steps keeps them.
"""

import builtins
import contextlib
import importlib.machinery
import io
import sys
import threading
import types
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from outrider import _runtime, api

_EXIT_AFTER_EXCEPTION = 1
_EXIT_WITHOUT_SCRIPT = 2
_EXIT_AFTER_INTERRUPT = 130


class OptimizerSteps:
    """Turns the calls of ``optimizer.step()`` into step boundaries, on the thread that makes the first call.

    A context manager: leaving it ends the last step, or aborts it when an exception passes through.
    """

    def __init__(self, name: str) -> None:
        self.boundaries = 0
        self._name = name
        self._open: api.step | None = None
        self._thread_id: int | None = None
        self._hook_handle: Any = None

    def __enter__(self) -> "OptimizerSteps":
        from torch.optim.optimizer import register_optimizer_step_post_hook

        self._hook_handle = register_optimizer_step_post_hook(self._at_boundary)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._hook_handle.remove()
        self._close(exc_type, exc, traceback)

    def _at_boundary(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        """torch's hook: runs after each optimizer step of the process, on the calling thread."""
        if self._thread_id is None:
            self._thread_id = threading.get_ident()
        if self._thread_id != threading.get_ident() or (self._open is None and api.inside_step()):
            return
        self.boundaries += 1
        self._close(None, None, None)
        self._open = api.step(self._name)
        self._open.__enter__()

    def _close(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._open is not None and self._thread_id == threading.get_ident():
            closing, self._open = self._open, None
            closing.__exit__(exc_type, exc, traceback)


def run_script(script: str, arguments: Sequence[str]) -> int:
    """Runs ``script`` as ``python script arguments...`` would, co-executed; returns its exit code.

    ``sys.argv``, ``sys.path[0]`` and ``__main__`` are the script's own, and stay so for what runs at exit. An
    uncaught exception is reported through ``sys.excepthook`` with the script's frames only.
    """
    path = Path(script).absolute()
    try:
        with io.open_code(str(path)) as file:
            source = file.read()
    except OSError as error:
        print(f"outrider: can't open file {str(path)!r}: {error}", file=sys.stderr)
        return _EXIT_WITHOUT_SCRIPT
    sys.argv = [script, *arguments]
    sys.path[0] = str(path.parent)
    try:
        with OptimizerSteps(path.name) if _runtime.enabled() else contextlib.nullcontext():
            _execute_as_main(source, str(path))
    except SystemExit as request:
        return _exit_code(request)
    except BaseException as error:
        error = error.with_traceback(_frames_of_script(error.__traceback__))
        sys.excepthook(type(error), error, error.__traceback__)
        return _EXIT_AFTER_INTERRUPT if isinstance(error, KeyboardInterrupt) else _EXIT_AFTER_EXCEPTION
    return 0


def _execute_as_main(source: bytes, path: str) -> None:
    """``runpy.run_path`` would do, but it takes ``__main__`` away again, and with it pickling at exit."""
    main = types.ModuleType("__main__")
    main.__file__ = path
    main.__loader__ = importlib.machinery.SourceFileLoader("__main__", path)
    main.__builtins__ = builtins
    sys.modules["__main__"] = main
    exec(compile(source, path, "exec", dont_inherit=True), main.__dict__)


def _exit_code(request: SystemExit) -> int:
    """What the interpreter makes of ``sys.exit(value)``: an int, None for success, else a message."""
    if request.code is None:
        return 0
    if isinstance(request.code, int):
        return request.code
    print(request.code, file=sys.stderr)
    return _EXIT_AFTER_EXCEPTION


def _frames_of_script(traceback: TracebackType | None) -> TracebackType | None:
    """Drops the frames of this module above the script. A syntax error has none left."""
    while traceback is not None and traceback.tb_frame.f_code.co_filename == __file__:
        traceback = traceback.tb_next
    return traceback
