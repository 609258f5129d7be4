"""Bitwise comparison on the GPU: eager with eager first, then eager with co-executed."""

import contextlib
import gc

import outrider
import torch
from gpu_programs import Training
from outrider import _runtime
from torch.nn.attention import SDPBackend, sdpa_kernel

STEPS = 30


@contextlib.contextmanager
def deterministic():
    """Math attention and deterministic cuDNN: kernels that give the same bits twice."""
    cudnn = torch.backends.cudnn
    previous = cudnn.deterministic, cudnn.benchmark
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        cudnn.deterministic, cudnn.benchmark = previous


def _train(workload, coexecuted):
    training = Training(workload)
    step = outrider.coexec(training.step) if coexecuted else training.step
    losses = []
    for i in range(STEPS):
        loss = step(i)
        if i % 10 == 9:
            losses.append(loss.item())
    outrider.flush()
    state = training.state()
    _runtime.core().leave()
    del training, step, loss
    gc.collect()
    torch.cuda.empty_cache()
    return losses, state


def _unequal(left, right):
    names = [name for name in left[1] if not torch.equal(left[1][name], right[1][name])]
    return names + (["losses"] if left[0] != right[0] else [])


def compare(workload):
    """Returns {"bitwise": verdict, "differs_by_itself": [...], "differs": [...]}.

    "equal": every bit; "equal_where_eager_is": the differing tensors differ between two eager runs
    as well; "different" otherwise.
    """
    with deterministic():
        eager = _train(workload, coexecuted=False)
        by_itself = _unequal(eager, _train(workload, coexecuted=False))
        _runtime.core().reset()
        found = _unequal(eager, _train(workload, coexecuted=True))
        _runtime.core().reset()
    if found and not set(found) <= set(by_itself):
        verdict = "different"
    else:
        verdict = "equal_where_eager_is" if found else "equal"
    return {"bitwise": verdict, "differs_by_itself": by_itself[:20], "differs": found[:20]}
