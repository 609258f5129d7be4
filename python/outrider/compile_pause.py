"""Pauses interception while a ``torch.compile``d callable runs.

Such a callable has its own way to the device, and its tracer must not meet intercepted tensors. torch
calls the ``enter_exit_hooks`` of a compiled callable's context around each of its runs; one more hook is
all that is needed. ``torch._dynamo`` takes a second to import, so nothing here imports it before somebody
compiles.
"""

import functools
import gc
import sys
import threading
from collections.abc import Callable
from typing import Any

from outrider import _runtime
from outrider.patching import PatchSet

_active = False
_context_patches = PatchSet()
_runs = threading.local()


def install(patches: PatchSet) -> None:
    """Hooks callables that are compiled already and, through ``torch.compile``, those still to come."""
    global _active
    import torch

    _active = True
    patches.wrap(torch, "compile", _hooks_then_compiles)
    if "torch._dynamo.eval_frame" in sys.modules:
        _hook_contexts()


def uninstall() -> None:
    """Contexts that live on keep their hook, which does nothing while inactive."""
    global _active
    _active = False
    _context_patches.remove()


def _pause() -> Callable[[], None]:
    """Called by torch before compiled code runs; what it returns is called afterwards."""
    if not _active or _runtime.in_forked_child():
        return _nothing
    core = _runtime.core()
    core.suspend()
    _runs.depth = depth = getattr(_runs, "depth", 0) + 1

    def resume() -> None:
        _runs.depth = depth - 1
        core.resume()

    return resume


def running() -> bool:
    """True in compiled code of this thread, which gives addresses to kernels that it launches at once."""
    return getattr(_runs, "depth", 0) > 0


def _nothing() -> None:
    return None


def _hooks_then_compiles(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def compile_with_pause(*args: Any, **kwargs: Any) -> Any:
        _hook_contexts()
        return original(*args, **kwargs)

    return compile_with_pause


def _hook_contexts() -> None:
    """Once per installation: searches the heap for existing contexts and follows the creation of new ones."""
    if len(_context_patches):
        return
    import torch._dynamo.eval_frame as eval_frame

    context_type = eval_frame._TorchDynamoContext
    for candidate in gc.get_objects():
        if issubclass(type(candidate), context_type):
            _add_hook(candidate, eval_frame.DisableContext)

    def adds_hook(original: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(original)
        def init(self: Any, *args: Any, **kwargs: Any) -> None:
            original(self, *args, **kwargs)
            _add_hook(self, eval_frame.DisableContext)

        return init

    _context_patches.wrap(context_type, "__init__", adds_hook)


def _add_hook(context: Any, disable_context_type: type) -> None:
    """``torch._dynamo.disable`` shares the type but runs eager code: interception stays on there."""
    hooks = getattr(context, "enter_exit_hooks", None)
    if hooks is not None and not isinstance(context, disable_context_type) and _pause not in hooks:
        hooks.append(_pause)
