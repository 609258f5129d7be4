"""Copies, comparable prints and gradients of arbitrarily nested arguments and results."""

import torch
from coexec.fingerprint import tensor_print
from torch.utils._pytree import tree_flatten, tree_map


def fresh_copy(tree):
    """Clones every tensor of `tree`, keeping layout and requires_grad, cut from any graph."""

    def copy(leaf):
        if not isinstance(leaf, torch.Tensor):
            return leaf
        return leaf.detach().clone().requires_grad_(leaf.requires_grad)

    with torch.no_grad():
        return tree_map(copy, tree)


def tensors_of(tree):
    """All tensors of `tree`, in order."""
    return [leaf for leaf in tree_flatten(tree)[0] if isinstance(leaf, torch.Tensor)]


def weighted_sum(outputs):
    """A scalar that depends on every differentiable output, or None where there is none.

    The weights differ from element to element, so that a swapped gradient shows.
    """
    parts = []
    for tensor in tensors_of(outputs):
        if tensor.requires_grad and tensor.numel() and not tensor.is_sparse:
            plain = tensor.resolve_conj().resolve_neg()
            real = torch.view_as_real(plain) if plain.is_complex() else plain
            weights = torch.linspace(0.5, 1.5, real.numel(), dtype=real.dtype).view(real.shape)
            parts.append((real * weights).sum())
    return sum(parts[1:], parts[0]) if parts else None


def _plain(leaf, values):
    if not isinstance(leaf, torch.Tensor):
        return leaf if isinstance(leaf, (int, float, bool, str, complex, type(None))) else repr(leaf)
    dense = leaf if leaf.layout == torch.strided else leaf.to_dense()
    description = tensor_print(dense.resolve_conj().resolve_neg())
    return description if values else description._replace(data=b"")


def prints(tree, values=True):
    """`tree` as a list of plain values; `values=False` keeps descriptions only."""
    return [_plain(leaf, values) for leaf in tree_flatten(tree)[0]]
