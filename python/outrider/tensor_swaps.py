"""Two tensors that exchange their contents: torch refuses while anybody holds a weak reference to one, as plans do."""

import functools
from collections.abc import Callable
from typing import Any

from outrider import _runtime
from outrider.patching import PatchSet


def install(patches: PatchSet, bypassed: Callable[[], bool]) -> None:
    """Makes an exchange outside of steps forget recordings and plans first; within a step they are needed."""
    import torch

    def forgets_first(original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def swap(first: Any, second: Any) -> Any:
            from outrider import api

            if not bypassed() and not api.inside_step():
                _runtime.core().reset()
            return original(first, second)

        return swap

    patches.wrap(torch._C, "_swap_tensor_impl", forgets_first)
