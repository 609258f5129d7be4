"""Every entry of torch's own op_db, module_db and optim_db as a subject that can be run in steps."""

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from skips import is_indeterminate
from torch.testing._internal.common_methods_invocations import op_db
from torch.testing._internal.common_modules import module_db
from torch.testing._internal.common_optimizers import optim_db
from values import fresh_copy, prints, tensors_of, weighted_sum

_SEED = 20240607
# Float32 wherever the operator has it, else the first dtype it has.
_DTYPES = (torch.float32, torch.int64, torch.complex64, torch.bool, torch.float64, torch.uint8)


@dataclass
class Case:
    """One sample of one entry. `start()` makes a fresh subject, equal on every call.

    compares_values  False: eager is not deterministic; shapes, strides and dtypes are compared, values are not
    """

    database: str
    entry: str
    sample: int
    start: Callable[[], Any]
    compares_values: bool = True

    @property
    def name(self):
        """A unique, stable name."""
        return f"{self.database}:{self.entry}:{self.sample}"


class OperatorSubject:
    """An operator on one sample, forward and, where differentiable, backward."""

    def __init__(self, operator, sample):
        self.operator = operator
        self.sample = sample

    def before(self):
        """Outside the step: fresh arguments, the same random numbers."""
        self.arguments = fresh_copy((self.sample.input, self.sample.args, self.sample.kwargs))
        torch.manual_seed(_SEED)

    def step(self):
        """Inside the step: the operator, then backward."""
        first, rest, named = self.arguments
        self.outputs = self.operator(first, *rest, **named)
        loss = weighted_sum(self.outputs)
        if loss is not None and loss.requires_grad:
            loss.backward()

    def results(self):
        """Outputs, arguments (they may have been written to) and gradients."""
        gradients = [tensor.grad for tensor in tensors_of(self.arguments) if tensor.is_leaf]
        return [self.outputs, self.arguments, gradients]


class ModuleSubject:
    """A module with fixed weights on one input, forward and backward."""

    def __init__(self, module_class, sample, training):
        torch.manual_seed(_SEED)
        constructor = sample.constructor_input
        self.module = module_class(*constructor.args, **constructor.kwargs).train(training)
        self.sample = sample

    def before(self):
        """Outside the step: fresh inputs, no gradients."""
        forward = self.sample.forward_input
        self.arguments = fresh_copy((forward.args, forward.kwargs))
        self.module.zero_grad()
        torch.manual_seed(_SEED)

    def step(self):
        """Inside the step: forward and backward."""
        self.outputs = self.module(*self.arguments[0], **self.arguments[1])
        loss = weighted_sum(self.outputs)
        if loss is not None and loss.requires_grad:
            loss.backward()

    def results(self):
        """Outputs, gradients, parameters and buffers."""
        parameters = list(self.module.parameters())
        gradients = [parameter.grad for parameter in parameters]
        gradients += [tensor.grad for tensor in tensors_of(self.arguments) if tensor.is_leaf]
        return [self.outputs, gradients, parameters, list(self.module.buffers())]


class OptimizerSubject:
    """A small regression under one optimizer configuration."""

    def __init__(self, info, options):
        torch.manual_seed(_SEED)
        sparse = info.only_supports_sparse_grads
        self.table = torch.nn.Embedding(6, 4, sparse=True) if sparse else None
        self.net = self.table or torch.nn.Linear(4, 4, bias=info.optim_cls.__name__ != "Muon")
        self.needs_closure = info.step_requires_closure
        self.optimizer = info.optim_cls(list(self.net.parameters()), **options)

    def before(self):
        """Outside the step: a new batch."""
        self.batch = torch.randint(0, 6, (5,)) if self.table else torch.randn(5, 4)

    def closure(self):
        """Computes loss and gradients."""
        self.optimizer.zero_grad()
        self.loss = (self.net(self.batch) - 0.5).square().mean()
        self.loss.backward()
        return self.loss

    def step(self):
        """Inside the step: one update."""
        if self.needs_closure:
            self.optimizer.step(self.closure)
        else:
            self.closure()
            self.optimizer.step()

    def results(self):
        """Loss, parameters, gradients and the whole optimizer state."""
        parameters = list(self.net.parameters())
        versions = [parameter._version for parameter in parameters]
        gradients = [parameter.grad for parameter in parameters]
        state = [self.optimizer.state[parameter] for parameter in parameters if parameter in self.optimizer.state]
        return [self.loss, parameters, gradients, versions, state]


def _full_name(info):
    return f"{info.name}.{info.variant_test_name}" if info.variant_test_name else info.name


def _dtype_of(info):
    return next((dtype for dtype in _DTYPES if info.supports_dtype(dtype, "cpu")), None)


def operator_entries():
    """(name, OpInfo) of every entry that has a CPU kernel for some dtype."""
    return [(_full_name(info), info) for info in op_db if _dtype_of(info) is not None]


def operator_cases(name, info, samples_max):
    """The first `samples_max` samples of an operator as cases."""
    dtype = _dtype_of(info)
    torch.manual_seed(_SEED)
    differentiable = info.supports_autograd and (dtype.is_floating_point or dtype.is_complex)
    samples = info.sample_inputs("cpu", dtype, requires_grad=differentiable)
    for number, sample in enumerate(itertools.islice(samples, samples_max)):
        start = functools.partial(OperatorSubject, info.op, sample)
        yield Case("op", name, number, start, compares_values=not is_indeterminate(name, sample))


def module_entries():
    """(name, ModuleInfo) of every entry."""
    return [(info.name, info) for info in module_db]


def module_cases(name, info, samples_max):
    """The first `samples_max` samples of a module in training and as many in evaluation."""
    number = 0
    for training in (True, False):
        torch.manual_seed(_SEED)
        samples = info.module_inputs_func(info, "cpu", torch.float32, True, training)
        for sample in itertools.islice(samples, samples_max):
            start = functools.partial(ModuleSubject, info.module_cls, sample, training)
            yield Case("module", name, number, start)
            number += 1


def optimizer_entries():
    """(name, OptimizerInfo) of every entry."""
    return [(info.optim_cls.__name__, info) for info in optim_db]


def optimizer_cases(name, info, samples_max):
    """Every configuration of an optimizer, each in every implementation it has on the CPU."""
    implementations = [{}] + [{kind: True} for kind in info.supported_impls if kind == "foreach"]
    if "cpu" in info.supports_fused_on:
        implementations.append({"fused": True})
    samples = itertools.islice(info.optim_inputs_func(device="cpu"), samples_max * 4)
    for number, (sample, extra) in enumerate(itertools.product(samples, implementations)):
        options = sample.kwargs | extra
        yield Case("optim", name, number, functools.partial(OptimizerSubject, info, options))


DATABASES = {
    "op": (operator_entries, operator_cases),
    "module": (module_entries, module_cases),
    "optim": (optimizer_entries, optimizer_cases),
}


def comparable(subject, values):
    """A subject's results as plain values."""
    return prints(subject.results(), values)
