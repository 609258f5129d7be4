"""Turns a program's whole state into plain values that compare bit for bit."""

import random
from typing import NamedTuple

import numpy as np
import torch


class TensorPrint(NamedTuple):
    """A tensor's observable identity: its description and its raw bytes."""

    dtype: str
    shape: tuple
    stride: tuple
    requires_grad: bool
    data: bytes


def raw_bytes(tensor):
    """Returns the elements of a dense or sparse tensor, any dtype, in logical order."""
    plain = tensor.detach()
    if plain.is_sparse:
        plain = plain.to_dense()
    flat = plain.cpu().flatten().clone(memory_format=torch.contiguous_format)
    return flat.view(torch.uint8).numpy().tobytes()


def tensor_print(tensor):
    """Returns the TensorPrint of `tensor`, or None for None (a missing `.grad`)."""
    if tensor is None:
        return None
    stride = () if tensor.is_sparse else tuple(tensor.stride())
    return TensorPrint(str(tensor.dtype), tuple(tensor.shape), stride, tensor.requires_grad, raw_bytes(tensor))


def random_states():
    """Returns the state of every global random generator."""
    numpy_state = np.random.get_state()
    states = {
        "rng.torch": torch.get_rng_state().numpy().tobytes(),
        "rng.numpy": (numpy_state[0], numpy_state[1].tobytes(), *numpy_state[2:]),
        "rng.python": random.getstate(),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        for index, state in enumerate(torch.cuda.get_rng_state_all()):
            states[f"rng.cuda{index}"] = state.numpy().tobytes()
    return states


def _module_state(prefix, module, state):
    for name, parameter in module.named_parameters():
        key = f"{prefix}.{name}"
        state[f"version:{key}"] = parameter._version
        state[f"version:{key}.grad"] = None if parameter.grad is None else parameter.grad._version
        state[f"param:{key}"] = tensor_print(parameter)
        state[f"grad:{key}"] = tensor_print(parameter.grad)
    for name, buffer in module.named_buffers():
        key = f"{prefix}.{name}"
        state[f"version:{key}"] = buffer._version
        state[f"buffer:{key}"] = tensor_print(buffer)


def _optimizer_state(prefix, optimizer, state):
    for group_index, group in enumerate(optimizer.param_groups):
        for name, value in group.items():
            if name != "params":
                plain = tensor_print(value) if torch.is_tensor(value) else value
                state[f"option:{prefix}.{group_index}.{name}"] = plain
        for index, parameter in enumerate(group["params"]):
            for name, value in optimizer.state.get(parameter, {}).items():
                key = f"{prefix}.{group_index}.{index}.{name}"
                if torch.is_tensor(value):
                    state[f"version:{key}"] = value._version
                    state[f"optimizer:{key}"] = tensor_print(value)
                else:
                    state[f"optimizer:{key}"] = value


def fingerprint(models, optimizers, log, extras):
    """Returns name -> comparable value for a whole program.

    Covers logged values, parameters, `.grad` (None-ness too), buffers, optimizer options and
    state, `_version` counters, layouts and all random states. Random states are read first,
    so that nothing done here can hide or add a draw.
    """
    state = random_states()
    state["log"] = list(log)
    for name, module in models.items():
        _module_state(name, module, state)
    for name, optimizer in optimizers.items():
        _optimizer_state(name, optimizer, state)
    for name, value in extras.items():
        state[f"extra:{name}"] = tensor_print(value) if torch.is_tensor(value) else value
    return state
