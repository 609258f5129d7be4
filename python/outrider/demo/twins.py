"""Two copies of a program that take turns in one process: one eager, one co-executed."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

import outrider
from outrider import _runtime


@dataclass
class RandomStates:
    """The global random generators of torch, numpy and Python."""

    torch_state: torch.Tensor
    numpy_state: Any
    python_state: Any

    @staticmethod
    def capture() -> "RandomStates":
        """Takes a copy of all states."""
        return RandomStates(torch.get_rng_state(), np.random.get_state(), random.getstate())

    def restore(self) -> None:
        """Puts all states back."""
        torch.set_rng_state(self.torch_state)
        np.random.set_state(self.numpy_state)
        random.setstate(self.python_state)


@dataclass
class Side:
    """One copy of the program with random generators of its own, so that both draw the same numbers."""

    program: Any
    step: Callable[[int], Any]
    coexecuted: bool
    states: RandomStates
    losses: list[float] = field(default_factory=list)
    step_ms: list[float] = field(default_factory=list)

    def run_block(self, count: int) -> None:
        """Runs the next `count` steps; the block's wall time, pending work included, is shared out."""
        self.states.restore()
        first = len(self.losses)
        start = time.perf_counter()
        results = [self.step(first + k) for k in range(count)]
        if self.coexecuted:
            outrider.flush()
        elapsed_ms = (time.perf_counter() - start) * 1e3
        self.losses += [result.item() if torch.is_tensor(result) else result for result in results]
        self.step_ms += [elapsed_ms / count] * count
        if self.coexecuted:
            _runtime.core().leave()
        self.states = RandomStates.capture()

    def state(self) -> dict[str, Any]:
        """The program's whole state under this side's random generators."""
        self.states.restore()
        return self.program.state()


def make_sides(build: Callable[[], Any]) -> tuple[Side, Side]:
    """Builds the program twice from the same seed: (eager, co-executed)."""
    sides = []
    for coexecuted in (False, True):
        program = build()
        step = outrider.coexec(program.step) if coexecuted else program.step
        sides.append(Side(program, step, coexecuted, RandomStates.capture()))
    return sides[0], sides[1]
