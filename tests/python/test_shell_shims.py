"""What the shell catches because it never becomes an operator call, against a double of the native core."""

import os
import re
import subprocess
import sys

import outrider
import pytest
import torch
from outrider import _runtime, compile_pause, shims
from outrider.patching import PatchSet
from shell_fixtures import core_double  # noqa: F401  the fixture `core`

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def installed(core):
    shims.install()
    core.calls.clear()
    return core


def _loss():
    weight = torch.ones(2, requires_grad=True)
    return weight, (weight * 3).sum()


def _watched_namespaces():
    return {
        "torch": torch,
        "torch._C": torch._C,
        "torch.random": torch.random,
        "torch.cuda": torch.cuda,
        "torch.cuda.random": torch.cuda.random,
        "torch.autograd": torch.autograd,
        "torch.autograd.graph": torch.autograd.graph,
        "torch.accelerator": torch.accelerator,
        "Tensor": torch.Tensor,
        "UntypedStorage": torch.UntypedStorage,
        "Stream": torch.cuda.Stream,
        "Event": torch.cuda.Event,
        "ContextProp": torch.backends.ContextProp,
    }


def _snapshot():
    return {name: dict(vars(namespace)) for name, namespace in _watched_namespaces().items()}


def _changed(before, after):
    return {
        (space, name)
        for space in before
        for name in before[space].keys() | after[space].keys()
        if before[space].get(name) is not after[space].get(name)
    }


def test_install_is_lazy_idempotent_and_can_be_undone(core):
    before = _snapshot()
    decorated = outrider.coexec(lambda: 1)
    assert shims.installed()
    once = _snapshot()
    changed = _changed(before, once)
    assert {("torch.autograd", "_engine_run_backward"), ("torch.autograd.graph", "_engine_run_backward")} <= changed
    assert {("torch", "manual_seed"), ("torch", "set_num_threads"), ("Tensor", "record_stream")} <= changed
    shims.install()
    assert _changed(once, _snapshot()) == set()
    outrider.uninstall()
    assert _changed(before, _snapshot()) == set()
    assert core.named("flush", "leave") == ["flush", "leave"]
    decorated()
    assert shims.installed(), "the next step installs the shims again"


def test_backward_runs_plainly_when_the_core_says_so(installed):
    weight, loss = _loss()
    loss.backward()
    assert weight.grad.tolist() == [3.0, 3.0]
    assert installed.named("backward_enter", "backward_exit") == ["backward_enter"]
    _, roots, gradients, keep_graph, create_graph, inputs, accumulate = installed.calls[-1]
    assert roots[0] is loss and gradients[0].item() == 1.0
    assert (keep_graph, create_graph, tuple(inputs), accumulate) == (False, False, (), True)


def test_backward_that_the_core_handles_does_not_enter_the_engine(installed):
    installed.backward_decision = 1
    weight, loss = _loss()
    assert torch.autograd.backward([loss]) is None
    assert weight.grad is None


def test_backward_that_the_core_follows_is_closed(installed):
    installed.backward_decision = 2
    weight, loss = _loss()
    (gradient,) = torch.autograd.grad(loss, [weight], retain_graph=True, create_graph=True)
    assert gradient.tolist() == [3.0, 3.0]
    assert installed.named("backward_enter", "backward_exit") == ["backward_enter", "backward_exit"]
    _, _, _, keep_graph, create_graph, inputs, accumulate = installed.calls[0]
    assert (keep_graph, create_graph, accumulate) == (True, True, False)
    assert inputs[0] is weight


def test_backward_that_the_core_follows_is_closed_when_it_fails(installed):
    installed.backward_decision = 2
    _, loss = _loss()
    loss.backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        loss.backward()
    assert installed.named("backward_enter", "backward_exit") == 2 * ["backward_enter", "backward_exit"]


def _set_mkldnn_enabled(value):
    torch.backends.mkldnn.enabled = value


def _set_cudnn_benchmark(value):
    torch.backends.cudnn.benchmark = value


def _set_cublas_tf32(value):
    torch.backends.cuda.matmul.allow_tf32 = value


FLAGS = {
    "num_threads": (torch.get_num_threads, torch.set_num_threads, 2),
    "default_dtype": (torch.get_default_dtype, torch.set_default_dtype, torch.float64),
    "matmul_precision": (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "high"),
    "deterministic": (torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms, True),
    "anomaly": (torch.is_anomaly_enabled, lambda value: torch.autograd.set_detect_anomaly(value), True),
    "mkldnn": (lambda: torch.backends.mkldnn.enabled, _set_mkldnn_enabled, False),
    "cudnn_benchmark": (lambda: torch.backends.cudnn.benchmark, _set_cudnn_benchmark, True),
    "tf32": (lambda: torch.backends.cuda.matmul.allow_tf32, _set_cublas_tf32, True),
    "flash_sdp": (torch.backends.cuda.flash_sdp_enabled, torch.backends.cuda.enable_flash_sdp, False),
}


@pytest.mark.parametrize("flag", FLAGS)
def test_a_flag_changes_only_after_pending_work_is_done(installed, flag, monkeypatch):
    # torch.testing's helpers freeze the backend flags for the whole process when another test file imports them.
    monkeypatch.setitem(torch.backends.flags_frozen.__globals__, "__allow_nonbracketed_mutation_flag", True)
    read, _, other = FLAGS[flag]
    # Setters bound before the shims were installed are looked up again, as a program's own call would.
    write = getattr(torch, FLAGS[flag][1].__name__, FLAGS[flag][1])
    original = read()
    assert original != other
    at_flush = []
    installed.on_flush = lambda: at_flush.append(read())
    try:
        write(other)
        assert read() == other
    finally:
        installed.on_flush = None
        write(original)
    assert at_flush[0] == original
    order = installed.named("flush_for_flag", "flag_changed")
    assert order[0] == "flush_for_flag" and order[-1] == "flag_changed" and len(order) % 2 == 0


def test_flags_as_a_context_manager_flush_on_both_ends(installed):
    with torch.backends.mkldnn.flags(enabled=False):
        inside = installed.named("flag_changed")
        assert inside
    assert len(installed.named("flag_changed")) > len(inside)


def test_a_setter_that_fails_still_reports(installed):
    with pytest.raises((RuntimeError, TypeError)):
        torch._C._set_cudnn_enabled("not a flag")
    assert installed.named("flush_for_flag", "flag_changed") == ["flush_for_flag", "flag_changed"]


def test_numeric_setters_are_found_by_name():
    found = set(shims.numeric_setters(torch._C))
    assert {
        "_set_cudnn_enabled",
        "_set_cudnn_deterministic",
        "_set_deterministic_algorithms",
        "_set_mkldnn_enabled",
        "_set_mkldnn_deterministic",
        "_set_sdp_use_flash",
        "_set_sdp_use_math",
        "_set_cublas_allow_tf32",
        "_set_float32_matmul_precision",
        "_set_default_dtype",
        "set_num_threads",
        "set_flush_denormal",
    } <= found
    # Read at each operator, and changed far too often to wait for pending work.
    assert not [name for name in found if re.search(r"grad_enabled|autocast|dispatch|torch_function", name)]


@pytest.mark.parametrize(
    "call",
    [
        lambda: torch.manual_seed(3),
        lambda: torch.seed(),
        lambda: torch.get_rng_state(),
        lambda: torch.random.set_rng_state(torch.random.get_rng_state()),
        lambda: torch.random.fork_rng(devices=[]).__enter__(),
    ],
)
def test_generator_state_flushes_first(installed, call):
    state = torch.get_rng_state()
    installed.calls.clear()
    call()
    assert "flush_for_flag" in installed.named("flush_for_flag")
    torch.set_rng_state(state)


@pytest.mark.parametrize("device_used", [True, False])
def test_nothing_is_left_to_replay_when_a_generator_of_the_device_is_set(installed, monkeypatch, device_used):
    """A replay could only draw from the new state; CPU programs, whose draws are kept, have nothing to fear."""
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: device_used)
    monkeypatch.setattr(torch.cuda, "_lazy_call", lambda *args, **kwargs: None)
    installed.calls.clear()
    torch.cuda.manual_seed_all(3)
    assert ("flush_for_flag", device_used) in installed.calls
    assert ("flush_for_flag", not device_used) not in installed.calls


def test_record_stream_flushes_first(installed):
    with pytest.raises((RuntimeError, TypeError, NotImplementedError)):
        torch.ones(1).record_stream(None)
    assert installed.named("flush_for_flag") == ["flush_for_flag"]


@pytest.mark.parametrize("name", ["synchronize", "query", "wait_event", "wait_stream", "record_event"])
def test_stream_methods_are_wrapped_where_torch_writes_them_in_python(installed, name):
    assert getattr(torch.cuda.Stream, name).__wrapped__ is not None


def test_compiled_callables_pause_interception(installed):
    """Those compiled before and after the shims were installed, and a module; not torch._dynamo.disable."""
    outrider.uninstall()
    before = torch.compile(lambda x: x + 1, backend="eager")
    shims.install()
    after = torch.compile(lambda x: x + 2, backend="eager")
    module = torch.compile(torch.nn.ReLU(), backend="eager")
    disabled = torch._dynamo.disable(lambda x: x + 3)
    x = torch.zeros(1)
    for compiled, expected in ((before, 1.0), (after, 2.0), (module, 0.0)):
        installed.calls.clear()
        assert compiled(x).item() == expected
        assert installed.named("suspend", "resume") == ["suspend", "resume"]
    installed.calls.clear()
    assert disabled(x).item() == 3.0
    assert installed.named("suspend", "resume") == []
    outrider.uninstall()
    installed.calls.clear()
    assert after(x).item() == 2.0
    assert installed.calls == []


def test_a_compiled_callable_that_raises_resumes(installed):
    def fails(x):
        raise ValueError("from compiled code")

    compiled = torch.compile(fails, backend="eager")
    installed.calls.clear()
    with pytest.raises(ValueError, match="from compiled code"):
        compiled(torch.zeros(1))
    assert installed.named("suspend", "resume") == ["suspend", "resume"]


def test_addresses_are_noticed(installed):
    weight = torch.ones(2)
    addresses = {weight.data_ptr(), weight.untyped_storage().data_ptr(), weight.storage().data_ptr()}
    assert len(addresses) == 1
    owners = [call[1] for call in installed.calls if call[0] == "gives_address"]
    assert owners == ["Tensor", "UntypedStorage", "UntypedStorage"]


def test_addresses_are_not_noticed_in_compiled_code(installed):
    weight = torch.ones(2)
    resume = compile_pause._pause()  # what torch calls around a compiled callable
    weight.data_ptr()
    nested = compile_pause._pause()
    nested()
    weight.data_ptr()
    assert installed.named("gives_address") == []
    resume()
    weight.data_ptr()
    assert installed.named("gives_address") == ["gives_address"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_runs_plainly(core):
    step = outrider.coexec(lambda: torch.set_num_threads(1))
    core.calls.clear()
    child = os.fork()
    if child == 0:
        plain = core.named("leave") == ["leave"] and _runtime.in_forked_child()
        core.calls.clear()
        step()
        torch.manual_seed(1)
        outrider.flush()
        os._exit(0 if plain and core.calls == [] else 1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert core.named("flush", "flush_for_fork", "leave") == ["flush_for_fork"]
    assert not _runtime.in_forked_child()


def test_patches_leave_alone_what_somebody_replaced_later():
    class Owner:
        def method(self):
            return "original"

    class Child(Owner):
        pass

    patches = PatchSet()
    assert patches.wrap(Child, "method", lambda original: lambda self: "patched")
    assert not patches.wrap(Child, "missing", lambda original: original)
    assert not patches.wrap(int, "bit_length", lambda original: original)
    assert Child().method() == "patched"
    Child.method = later = lambda self: "later"
    patches.remove()
    assert vars(Child)["method"] is later and len(patches) == 0
    del Child.method
    patches.wrap(Child, "method", lambda original: lambda self: "patched")
    patches.remove()
    assert "method" not in vars(Child), "an inherited attribute is inherited again"


def test_an_alias_that_somebody_wrapped_is_wrapped_as_well():
    class Module:
        @staticmethod
        def function():
            return ["original"]

    class Alias:
        function = staticmethod(lambda: ["theirs", *module_function()])

    class SameAlias:
        function = Module.function

    module_function = Module.function
    patches = PatchSet()
    patches.wrap(Module, "function", lambda original: staticmethod(lambda: ["ours", *original()]), (Alias, SameAlias))
    assert Module.function() == ["ours", "original"]
    assert Alias.function() == ["ours", "theirs", "original"]
    assert vars(SameAlias)["function"] is vars(Module)["function"]
    patches.remove()
    assert (Module.function(), Alias.function()) == (["original"], ["theirs", "original"])


def test_a_shim_that_outlives_uninstall_does_nothing(installed):
    held = torch.manual_seed
    outrider.uninstall()
    installed.calls.clear()
    held(0)
    assert installed.calls == []


def test_importing_outrider_patches_nothing():
    program = "import torch; before = torch.manual_seed; import outrider; assert torch.manual_seed is before"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, timeout=60, check=False)
    assert done.returncode == 0
