"""Steps and their controls: what a user calls from a training or decoding loop.

A *step* is one pass of the user's loop body. The first few are recorded; once recordings agree, the
tensor operations of later steps are handed to the graph runner while the Python code keeps running.
"""

import functools
import inspect
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, TypeVar, overload

from outrider import _runtime, shims

Function = TypeVar("Function", bound=Callable[..., Any])

_MARKER = "__outrider_coexec__"

LANES = {"auto": 0, "inner": 1, "outer": 2, "off": 3}
FLUSH_MODES = {"never": 0, "every": 1, "random": 2}
_CHOICES = {"lane": LANES, "flush": FLUSH_MODES}


class _ThreadState(threading.local):
    """Per thread: True while this thread is inside a co-executed step."""

    inside_step = False


_thread = _ThreadState()


class step:
    """Context manager that makes its body one co-executed step.

    Steps do not nest: an inner step is part of the outer one. A step on a second Python thread, while
    another thread co-executes, runs plainly. An exception aborts the step: what the program did so far
    is completed exactly as eager execution would have, and the exception propagates unchanged.

    Args:
        name: shown in reports; steps of different loops should have different names.
    """

    __slots__ = ("_name", "_owns")

    def __init__(self, name: str = "step") -> None:
        self._name = name
        self._owns = False

    def __enter__(self) -> "step":
        if _thread.inside_step or not _runtime.enabled() or _runtime.in_forked_child():
            return self
        shims.install()
        if _runtime.core().step_begin(self._name) is not False:
            _thread.inside_step = self._owns = True
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not self._owns:
            return
        _thread.inside_step = self._owns = False
        if _runtime.in_forked_child():
            return
        if exc_type is None:
            _runtime.core().step_end()
        else:
            _runtime.core().step_abort()


@overload
def coexec(function: Function, *, name: str | None = None) -> Function: ...
@overload
def coexec(function: None = None, *, name: str | None = None) -> Callable[[Function], Function]: ...
def coexec(function: Callable[..., Any] | None = None, *, name: str | None = None) -> Any:
    """Makes every call of ``function`` one co-executed step; use it as a decorator or as a wrapper.

    Works on functions, methods, lambdas, ``functools.partial`` objects, static and class methods, and
    callable objects such as an ``nn.Module`` (the result is then a function; the object itself is its
    ``__wrapped__``). A function that is co-executed already is returned unchanged, and with
    ``OUTRIDER=0`` every function is.

    Args:
        function: the body of the loop. It stays ordinary Python.
        name: shown in reports; default: the function's own name.

    Raises:
        TypeError: generator, coroutine or async generator functions (their body does not run while they
            are called), classes, and objects that cannot be called.
    """
    if function is None:
        return functools.partial(coexec, name=name)
    if not _runtime.enabled() or _is_coexecuted(function):
        return function
    if isinstance(function, (staticmethod, classmethod)):
        return type(function)(coexec(function.__func__, name=name))
    _refuse_unsuitable(function)
    shims.install()
    step_name = name or _display_name(function)
    plain_function = inspect.isroutine(function)
    updated = functools.WRAPPER_UPDATES if plain_function else ()

    @functools.wraps(function, updated=updated)
    def coexecuted(*args: Any, **kwargs: Any) -> Any:
        with step(step_name):
            return function(*args, **kwargs)

    setattr(coexecuted, _MARKER, coexecuted)
    return coexecuted


def inside_step() -> bool:
    """True on a thread that is inside a co-executed step."""
    return _thread.inside_step


def flush() -> None:
    """Waits until all work handed to the graph runner is done and visible in every tensor."""
    if _runtime.enabled() and not _runtime.in_forked_child():
        _runtime.core().flush()


def report() -> list[dict[str, Any]]:
    """One row (a dict) per finished step, oldest first; the newest 4096 are kept.

    Counts are operations, times end in ``_us`` (microseconds). ``docs/guide/explain.md`` describes each field.
    """
    return list(_runtime.core().rows()) if _runtime.enabled() else []


def clear() -> None:
    """Forgets the rows of :func:`report`; recordings and plans stay."""
    if _runtime.enabled():
        _runtime.core().clear_rows()


def reset() -> None:
    """Forgets every recording and plan; the next steps are recorded anew."""
    if _runtime.enabled():
        _runtime.core().reset()


def options(**changes: Any) -> dict[str, Any]:
    """Changes debugging and test options of this process; returns their previous values.

    ``outrider.options(**previous)`` restores them. All keys are checked before anything changes.

    Args:
        lane: ``"auto"``, ``"inner"``, ``"outer"`` or ``"off"``.
        flush: ``"never"``, ``"every"`` (complete pending work after every operation) or ``"random"``.
        force_divergence: ``(step, event)``, the step as numbered in :func:`report`, or None.
        **changes: any other option of the core, an int or a bool.

    Raises:
        ValueError: an unknown key, or a value that is not allowed for its key.
        TypeError: a value of the wrong kind.
    """
    if not _runtime.enabled():
        return {}
    encoded = [pair for key, value in changes.items() for pair in _encode_option(key, value)]
    previous = {key: _current_option(key) for key in changes}
    for key, value in encoded:
        _runtime.core().set_option(key, value)
    return previous


def uninstall() -> None:
    """Completes pending work and takes every patch out of torch. The next step installs them again."""
    shims.uninstall()


def _is_coexecuted(function: Any) -> bool:
    """Compares identity, because ``functools.wraps`` copies the marker onto other people's wrappers."""
    underlying = getattr(function, "__func__", function)
    return getattr(underlying, _MARKER, None) is underlying


def _refuse_unsuitable(function: Any) -> None:
    if not callable(function) or inspect.isclass(function):
        raise TypeError(f"coexec needs a function or a callable object, not {function!r}")
    underlying = function
    while isinstance(underlying, functools.partial):
        underlying = underlying.func
    candidates = (underlying, type(underlying).__call__)
    kinds = (
        ("a generator function", inspect.isgeneratorfunction),
        ("a coroutine function", inspect.iscoroutinefunction),
        ("an async generator function", inspect.isasyncgenfunction),
    )
    for kind, is_kind in kinds:
        if any(is_kind(candidate) for candidate in candidates):
            raise TypeError(
                f"coexec cannot co-execute {kind} ({_display_name(function)}): its body does not run while it is "
                "called. Wrap the function that does the work of one step, or use `with outrider.step():`."
            )


def _display_name(function: Any) -> str:
    while isinstance(function, functools.partial):
        function = function.func
    qualified = getattr(function, "__qualname__", None) or type(function).__qualname__
    return qualified.rpartition("<locals>.")[2]


def _encode_option(key: str, value: Any) -> list[tuple[str, int]]:
    """The core's options are integers; this is the one place that knows the spelling."""
    if key in _CHOICES:
        if value not in _CHOICES[key]:
            raise ValueError(f"option {key} is one of {', '.join(_CHOICES[key])}, not {value!r}")
        return [(key, _CHOICES[key][value])]
    if key == "force_divergence":
        at_step, at_event = (-1, -1) if value is None else value
        return [("force_step", int(at_step)), ("force_event", int(at_event))]
    if not isinstance(value, int):
        raise TypeError(f"option {key} is an int or a bool, not {value!r}")
    return [(key, int(value))]


def _current_option(key: str) -> Any:
    get_option = _runtime.core().get_option
    if key in _CHOICES:
        value = get_option(key)
        return next(name for name, code in _CHOICES[key].items() if code == value)
    if key == "force_divergence":
        at = (get_option("force_step"), get_option("force_event"))
        return None if at[0] < 0 else at
    return get_option(key)
