"""The few places where Python reaches torch's state without passing the dispatcher.

The core intercepts operators. What never becomes an operator call has to be caught here:

* a backward pass enters the engine as one call (``_engine_run_backward``);
* a setting that changes numerics must not change under operations that are still pending, so every
  setter first completes them, then changes the setting, then tells the core that it changed;
* random generator state, stream and event calls, and ``fork`` first complete what is pending;
* the address of a tensor or of a storage object, once asked for, may be used without a trace (``data_ptr``);
* code under ``torch.compile`` has its own way to the device (see ``compile_pause``).

Not reachable, because the types are written in C: methods of ``torch.Generator``, ``torch.Stream`` and
``torch.Event`` objects. Programs that use those of a device inside a step call ``outrider.flush()`` first.

Owner: the first step or ``coexec`` call of the process installs; :func:`uninstall` removes. Idempotent.
"""

import functools
import itertools
import os
import re
from collections.abc import Callable
from typing import Any

from outrider import _runtime, compile_pause, tensor_swaps
from outrider.patching import PatchSet

_patches = PatchSet()
_installed = False
_fork_handlers_registered = False

_NUMERIC_SETTER = re.compile(
    r"_set_(cudnn|mkldnn|onednn|miopen|nnpack|cublas|blas|linalg|rocm|sdp|math_sdp|sm_carveout|float32|fp32"
    r"|cpu_allow|deterministic|default_dtype|default_tensor_type|qengine)(_|$)"
    r"|set_(num_threads|flush_denormal|anomaly_enabled)$"
)
_PRECISION_SETTER = re.compile("tf32|fp32|float32")
_PRECISION_GETTER = re.compile(r"_get_\w+_allow_tf32$")
_PRECISIONS = [("generic", "all"), *itertools.product(("cuda", "mkldnn"), ("all", "matmul", "conv", "rnn"))]
_changes = itertools.count()
_CPU_GENERATOR = ("manual_seed", "seed", "get_rng_state", "set_rng_state")
_CUDA_GENERATOR_READ = ("get_rng_state", "get_rng_state_all", "_get_rng_state_offset")
_CUDA_GENERATOR_SET = (
    "manual_seed",
    "manual_seed_all",
    "seed",
    "seed_all",
    "set_rng_state",
    "set_rng_state_all",
    "_set_rng_state_offset",
)
_STREAM_METHODS = ("synchronize", "query", "wait_event", "wait_stream", "record_event")
_EVENT_METHODS = ("synchronize", "query", "record", "wait", "elapsed_time")

# Code that asks for addresses, and keeps none of them beyond its call: it compares them, or reads at once. Ends of file
# names, with one function of the file or with all.
_READERS = (
    "/torch/_tensor.py:__deepcopy__",
    "/torch/_tensor.py:_reduce_ex_internal",
    "/torch/serialization.py",
    "/safetensors/torch.py",
    "/huggingface_hub/serialization/_torch.py",
    "/transformers/modeling_utils.py",
    "/transformers/pytorch_utils.py",
)

# Answers of the core's backward_enter.
_PLAIN, _HANDLED, _FOLLOWED = 0, 1, 2


def install() -> None:
    """Installs all shims. Does nothing when they are installed."""
    global _installed
    if _installed:
        return
    _runtime.core()
    _learn_accesses()
    _install_backward()
    _install_addresses()
    _install_history()
    tensor_swaps.install(_patches, _bypassed)
    _install_setters()
    _install_generators()
    _install_streams()
    compile_pause.install(_patches)
    _register_fork_handlers()
    _installed = True


def uninstall() -> None:
    """Completes pending work, un-enrols this thread and removes all shims. Does nothing when none is installed."""
    global _installed
    if not _installed:
        return
    if not _runtime.in_forked_child():
        _runtime.core().flush()
        _runtime.core().leave()
    compile_pause.uninstall()
    _patches.remove()
    _installed = False


def installed() -> bool:
    """True between :func:`install` and :func:`uninstall`."""
    return _installed


def numeric_setters(namespace: Any) -> list[str]:
    """Names of the functions in ``namespace`` (``torch._C``) that change how operators compute."""
    return sorted(name for name in dir(namespace) if _NUMERIC_SETTER.match(name))


def _bypassed() -> bool:
    """True where a shim must do nothing: while torch.compile traces us, in a forked child, and after
    :func:`uninstall`, when somebody still holds a shim (``torch._dynamo`` wraps ``torch.manual_seed``, for one).
    """
    import torch

    return not _installed or torch.compiler.is_compiling() or _runtime.in_forked_child()


def _flushes_first(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps a function that reads or changes device or generator state."""

    @functools.wraps(original)
    def flushing(*args: Any, **kwargs: Any) -> Any:
        if not _bypassed():
            _runtime.core().flush_for_flag()
        return original(*args, **kwargs)

    return flushing


def _sets_device_generator(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps a function that sets a generator of the device: what has drawn from it must not be replayed any more."""

    @functools.wraps(original)
    def setting(*args: Any, **kwargs: Any) -> Any:
        import torch

        if not _bypassed():
            _runtime.core().flush_for_flag(sets=torch.cuda.is_initialized())
        return original(*args, **kwargs)

    return setting


def _never_seen() -> str:
    return f"change {next(_changes)}"


def _precision_state() -> str:
    """Every float32 precision flag as it is now: their setters change each other's."""
    import torch

    read = [torch._C._get_float32_matmul_precision]
    read += [getattr(torch._C, name) for name in dir(torch._C) if _PRECISION_GETTER.match(name)]
    by_operator = getattr(torch._C, "_get_fp32_precision_getter", None)
    if by_operator is not None:
        read += [functools.partial(by_operator, *where) for where in _PRECISIONS]
    try:
        return str([getter() for getter in read])
    except RuntimeError:  # torch refuses to answer where old and new ways of setting were mixed
        return _never_seen()


def _flag_and_value(original: Callable[..., Any], args: Any, kwargs: Any) -> tuple[str, str]:
    """Name of the flag that a setter call has changed, and what it is now, both as text.

    Properties of torch.backends count as the setter behind them.
    """
    import torch.backends

    name = getattr(original, "__name__", "")
    if args and isinstance(args[0], torch.backends.ContextProp):
        name, args = getattr(args[0].setter, "__name__", ""), args[2:]
    if _PRECISION_SETTER.search(name):
        return "precision", _precision_state()
    return (name, f"{args} {kwargs}") if _NUMERIC_SETTER.match(name) else ("other", _never_seen())


def _sets_a_flag(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps a function that changes how operators compute. Pending operations keep the old setting.

    The core is told what was set to what: a program that sets and resets a flag in every step is in the same
    environment again.
    """

    @functools.wraps(original)
    def setting(*args: Any, **kwargs: Any) -> Any:
        if _bypassed():
            return original(*args, **kwargs)
        core = _runtime.core()
        core.flush_for_flag(sets=True)
        try:
            result = original(*args, **kwargs)
        except BaseException:
            core.flag_changed("other", _never_seen())
            raise
        core.flag_changed(*_flag_and_value(original, args, kwargs))
        return result

    return setting


def _runs_backward(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps the one call through which every Python backward pass enters the autograd engine.

    ``t_outputs`` and ``inputs`` may hold ``GradientEdge`` objects, ``grad_tensors`` may hold None.
    """

    @functools.wraps(original)
    def run_backward(
        t_outputs: Any,
        grad_tensors: Any,
        keep_graph: Any,
        create_graph: Any,
        inputs: Any = (),
        allow_unreachable: Any = False,
        accumulate_grad: Any = False,
    ) -> Any:
        def run_engine() -> Any:
            return original(
                t_outputs,
                grad_tensors,
                keep_graph,
                create_graph,
                inputs,
                allow_unreachable=allow_unreachable,
                accumulate_grad=accumulate_grad,
            )

        if _bypassed():
            return run_engine()
        core = _runtime.core()
        decision = core.backward_enter(
            t_outputs, grad_tensors, bool(keep_graph), bool(create_graph), inputs, bool(accumulate_grad)
        )
        if decision == _HANDLED:
            return ()
        if decision == _PLAIN:
            return run_engine()
        assert decision == _FOLLOWED, f"backward_enter answered {decision}"
        completed = False
        try:
            result = run_engine()
            completed = True
            return result
        finally:
            core.backward_exit(completed)

    return run_backward


def _install_backward() -> None:
    import torch.autograd.graph

    _patches.wrap(torch.autograd.graph, "_engine_run_backward", _runs_backward, also_in=(torch.autograd,))


def _learn_accesses() -> None:
    """Shows the core the raw accesses that leave no pointer behind: lists of numbers, Python storages (counted), and
    what libraries do that write tensors to files.
    """
    core = _runtime.core()
    if not core.load():
        return
    core.set_readers(list(_READERS))
    probe = core.probe_tensor()
    try:
        core.learn_accesses("read")
        probe.tolist()
        core.learn_accesses("counted")
        probe.untyped_storage()
    finally:
        core.learn_accesses("")


def _gives_address(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps ``data_ptr``. No reference tells how long the program will use the number that it gets; compiled code
    hands it to a kernel.
    """

    @functools.wraps(original)
    def data_ptr(owner: Any) -> Any:
        if not _bypassed() and not compile_pause.running():
            _runtime.core().gives_address(owner)
        return original(owner)

    return data_ptr


def _install_addresses() -> None:
    import torch

    _patches.wrap(torch.Tensor, "data_ptr", _gives_address)
    _patches.wrap(torch.UntypedStorage, "data_ptr", _gives_address)


def _reveals(question: str, how: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Wraps a method of Tensor that exposes autograd's facts: ``question`` makes the core show the real ones first."""

    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def revealing(tensor: Any, *args: Any, **kwargs: Any) -> Any:
            if not _bypassed():
                getattr(_runtime.core(), question)(tensor, how)
            return original(tensor, *args, **kwargs)

        return revealing

    return wrap


def _install_history() -> None:
    import torch

    for name in ("register_hook", "retain_grad"):
        _patches.wrap(torch.Tensor, name, _reveals("reveal_history", f"Tensor.{name}"))
    _patches.wrap(torch.Tensor, "_is_view", _reveals("reveal_view", "Tensor._is_view"))
    for name, question in (("grad_fn", "reveal_history"), ("_base", "reveal_view")):
        getter = _reveals(question, f"Tensor.{name}")(getattr(torch.Tensor, name).__get__)
        _patches.wrap(torch.Tensor, name, lambda original, getter=getter: property(getter))

    def applies_function(original: Callable[..., Any]) -> Any:
        def apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
            if not _bypassed():
                _runtime.core().builds_own_nodes(f"custom autograd function {cls.__name__}")
            return original.__func__(cls, *args, **kwargs)  # type: ignore[attr-defined]

        return classmethod(functools.wraps(original.__func__)(apply))  # type: ignore[attr-defined]

    _patches.wrap(torch.autograd.Function, "apply", applies_function)


def _install_setters() -> None:
    import torch.backends

    for name in numeric_setters(torch._C):
        _patches.wrap(torch._C, name, _sets_a_flag, also_in=(torch,))
    # Properties such as torch.backends.cudnn.enabled keep their own reference to the setter.
    _patches.wrap(torch.backends.ContextProp, "__set__", _sets_a_flag)


def _install_generators() -> None:
    import torch.cuda.random
    import torch.random

    for name in _CPU_GENERATOR:
        _patches.wrap(torch.random, name, _flushes_first, also_in=(torch,))
    for name in _CUDA_GENERATOR_READ:
        _patches.wrap(torch.cuda.random, name, _flushes_first, also_in=(torch.cuda,))
    for name in _CUDA_GENERATOR_SET:
        _patches.wrap(torch.cuda.random, name, _sets_device_generator, also_in=(torch.cuda,))


def _install_streams() -> None:
    import torch

    _patches.wrap(torch.Tensor, "record_stream", _flushes_first)
    _patches.wrap(torch.cuda, "synchronize", _flushes_first)
    if hasattr(torch, "accelerator"):
        _patches.wrap(torch.accelerator, "synchronize", _flushes_first)
    for name in _STREAM_METHODS:
        _patches.wrap(torch.cuda.Stream, name, _flushes_first)
    for name in _EVENT_METHODS:
        _patches.wrap(torch.cuda.Event, name, _flushes_first)


def _register_fork_handlers() -> None:
    """Handlers cannot be removed again, so they ask whether the shims are installed."""
    global _fork_handlers_registered
    if _fork_handlers_registered:
        return
    os.register_at_fork(before=_before_fork, after_in_child=_after_fork_in_child)
    _fork_handlers_registered = True


def _before_fork() -> None:
    if _installed and not _runtime.in_forked_child():
        _runtime.core().flush_for_fork()


def _after_fork_in_child() -> None:
    """Only the forking thread exists here: the graph runner is gone, so the child runs plainly."""
    if _installed and not _runtime.in_forked_child():
        _runtime.mark_forked_child()
        _runtime.core().leave()
