"""What the whole process sees once the core is loaded, in a process of its own beside one without: eager twins in one
process would both run on the watched engine.
"""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

PROGRAMS = {
    "saved_tensor_hooks": """
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t * 2):
            x = torch.ones(3, requires_grad=True)
            y = x * x
        y.sum().backward()
        print(x.grad, y.grad_fn.metadata)
    """,
    "saved_tensor_hooks_in_steps": """
        w = torch.nn.Parameter(torch.linspace(-1, 1, 12).view(3, 4))
        opt = torch.optim.SGD([w], 0.1)
        packed = []
        @outrider.coexec
        def step(i):
            hooks = torch.autograd.graph.saved_tensors_hooks(lambda t: packed.append(1) or t, lambda t: t * 0.5)
            with hooks if i % 3 == 2 else contextlib.nullcontext():
                loss = (w * w).tanh().pow(2).sum()
            opt.zero_grad()
            loss.backward()
            opt.step()
            return loss
        for i in range(30):
            print(step(i).item(), len(packed))
        print(w)
    """,
    "checkpoint": """
        from torch.utils.checkpoint import checkpoint
        net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 4))
        opt = torch.optim.Adam(net.parameters(), 0.01)
        calls = []
        def inner(x):
            calls.append(1)
            return net(x)
        @outrider.coexec
        def step(x):
            loss = checkpoint(inner, x, use_reentrant=False).pow(2).mean()
            opt.zero_grad()
            loss.backward()
            opt.step()
            return loss
        for i in range(20):
            print(step(torch.full((2, 4), 0.1 * i)).item())
        print(len(calls), *net.parameters())
    """,
    "save_on_cpu": """
        x = torch.linspace(0, 1, 6, requires_grad=True)
        with torch.autograd.graph.save_on_cpu():
            y = (x.exp() * x).sum()
        y.backward()
        print(x.grad)
    """,
    "anomaly": """
        import warnings
        with torch.autograd.set_detect_anomaly(True), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            x = torch.zeros(2, requires_grad=True)
            try:
                (x.sqrt() * 0).sum().backward()
            except RuntimeError as error:
                print(str(error)[:60])
        print([("x.sqrt()" in str(one.message), "frame #" in str(one.message)) for one in caught])
    """,
    "compiled_training": """
        torch.manual_seed(0)
        net = torch.nn.Linear(4, 4)
        compiled = torch.compile(net, backend="aot_eager")
        opt = torch.optim.SGD(net.parameters(), 0.1)
        for i in range(4):
            loss = compiled(torch.full((2, 4), 0.5)).pow(2).sum()
            opt.zero_grad()
            loss.backward()
            opt.step()
            print(loss.item())
    """,
    "compiled_training_in_steps": """
        torch.manual_seed(0)
        net = torch.nn.Linear(4, 4)
        compiled = torch.compile(net, backend="aot_eager")
        opt = torch.optim.SGD(net.parameters(), 0.1)
        @outrider.coexec
        def step(i):
            loss = compiled(torch.full((2, 4), 0.5)).pow(2).sum()
            opt.zero_grad()
            loss.backward()
            opt.step()
            return loss
        for i in range(8):
            print(step(i).item())
    """,
    "out_of_other_sizes": """
        a, b = torch.arange(12.0).view(3, 4), torch.linspace(-1, 1, 20).view(4, 5)
        def step(i):
            found = []
            for shape in ((0,), (7,), (3, 4), (3, 5)):
                for run in (
                    lambda out: torch.add(a, 1, out=out),
                    lambda out: torch.mm(a, b, out=out),
                    lambda out: torch.matmul(a, b, out=out),
                    lambda out: torch.cat([a, a + i], out=out),
                    lambda out: torch.stack([a, a], out=out),
                    lambda out: torch.sum(a, dim=1, out=out),
                    lambda out: torch.arange(5 + i % 2, out=out),
                ):
                    out = torch.empty(shape)
                    kept = out.view(-1)
                    result = run(out)
                    found += [tuple(out.shape), result is out, float(out.sum()), tuple(kept.shape)]
            values, where = torch.empty(0), torch.empty(0, dtype=torch.long)
            torch.max(a * (i + 1), dim=1, out=(values, where))
            return found, values, where
        step = outrider.coexec(step)
        for i in range(8):
            print(*step(i))
    """,
    "swapped_tensors": """
        q = torch.ones(3)
        @outrider.coexec
        def step():
            return (q + 1).sum()
        for _ in range(5):
            print(step().item())
        torch.utils.swap_tensors(q, torch.zeros(3))
        for _ in range(5):
            print(step().item())
        torch.__future__.set_swap_module_params_on_conversion(True)
        net = torch.nn.Linear(2, 2)
        torch.nn.init.ones_(net.weight)
        train = outrider.coexec(lambda: net(torch.ones(2, dtype=net.weight.dtype)).sum())
        train(), train(), train()
        net.double()
        print(net.weight, train().dtype)
    """,
    "exported_in_a_step": """
        class Twice(torch.nn.Module):
            def forward(self, x):
                return x * 2
        for _ in range(4):
            with outrider.step():
                program = torch.export.export(Twice(), (torch.ones(2),))
                print(program.module()(torch.arange(2.0)))
    """,
    "fake_tensors_in_a_step": """
        from torch._dispatch.python import enable_python_dispatcher
        from torch._subclasses.fake_tensor import FakeTensorMode
        for _ in range(4):
            with outrider.step(), FakeTensorMode(), enable_python_dispatcher():
                print((torch.ones(3, requires_grad=True) * 2).shape)
    """,
}


def _run(program: str, enabled: str) -> subprocess.CompletedProcess:
    head = "import contextlib, torch, outrider\ntorch.manual_seed(0)\n"
    if enabled == "1":
        head += "outrider.coexec(lambda: 0)()\n"
    environment = os.environ | {"OUTRIDER": enabled, "PYTHONPATH": str(ROOT / "python"), "PYTHONWARNINGS": "ignore"}
    text = head + textwrap.dedent(program)
    return subprocess.run([sys.executable, "-c", text], env=environment, capture_output=True, text=True, timeout=240)


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_process_prints_what_it_prints_without(name):
    plain, watched = (_run(PROGRAMS[name], enabled) for enabled in "01")
    assert plain.returncode == 0 and plain.stdout, plain.stderr
    assert watched.returncode == 0, watched.stderr
    assert watched.stdout == plain.stdout


def test_an_error_that_nobody_waited_for_is_shown_at_the_end():
    program = """
        table = torch.nn.Embedding(4, 2)
        step = outrider.coexec(lambda i: table(torch.tensor([0, 1, 9 if i == 19 else 2])).sum())
        for i in range(20):
            step(i)
    """
    plain, watched = (_run(program, enabled) for enabled in "01")
    assert plain.returncode == 1 and "index out of range" in plain.stderr
    assert "index out of range" in watched.stderr
