"""A pure-Python double of the native core: it records calls and decides nothing by itself.

Tests of the Python shell use it, so that they need no compiled code. ``install()`` puts it where
``outrider`` looks for the core; a test sets the public attributes to choose the answers.
"""

import sys
import threading
from types import ModuleType
from typing import Any

OPTION_DEFAULTS = {
    "lane": 0,
    "flush": 0,
    "force_step": -1,
    "force_event": -1,
    "graft": 1,
    "runner_delay_us": 0,
}


def make_row(step: int, **changes: Any) -> dict[str, Any]:
    """A complete row of a fully covered step; ``changes`` replaces fields."""
    row = {
        "step": step,
        "name": "train",
        "lane": "outer",
        "tier": "T2",
        "recorded": False,
        "events": 40,
        "device_ops": 100,
        "covered_ops": 100,
        "covered_share": 1.0,
        "host_ops": 2,
        "inline_ops": {},
        "feeds": 2,
        "fetches": 1,
        "flushes": {},
        "divergences": [],
        "replayed_events": 0,
        "host_us": 1500.0,
        "host_wait_us": 250.0,
        "runner_busy_us": 1000.0,
        "runner_wait_us": 500.0,
        "note": "",
    }
    assert changes.keys() <= row.keys()
    return {**row, **changes}


class FakeCore(ModuleType):
    """Calls are kept in order in ``calls``, as ``(function, *arguments)``."""

    def __init__(self) -> None:
        super().__init__("outrider._core")
        self.calls: list[tuple[Any, ...]] = []
        self.backward_decision = 0
        self.values = dict(OPTION_DEFAULTS)
        self.spans: list[dict[str, Any]] = []
        self.kept_rows: list[dict[str, Any]] = []
        self.on_flush: Any = None
        self._enrolled: int | None = None
        self._step = ""

    def named(self, *names: str) -> list[str]:
        """The order in which the functions ``names`` were called."""
        return [call[0] for call in self.calls if call[0] in names]

    def step_begin(self, name: str) -> bool:
        if self._enrolled not in (None, threading.get_ident()):
            self.calls.append(("step_begin_refused", name))
            return False
        self._enrolled = threading.get_ident()
        self._step = name
        self.calls.append(("step_begin", name))
        return True

    def step_end(self) -> None:
        self.calls.append(("step_end",))
        self.kept_rows.append(make_row(len(self.kept_rows), name=self._step))

    def step_abort(self) -> None:
        self.calls.append(("step_abort",))
        self.kept_rows.append(make_row(len(self.kept_rows), name=self._step, lane="record"))

    def flush(self) -> None:
        self.calls.append(("flush",))
        if self.on_flush is not None:
            self.on_flush()

    def flush_for_flag(self, sets: bool = False) -> None:
        self.calls.append(("flush_for_flag", sets))
        if self.on_flush is not None:
            self.on_flush()

    def flush_for_fork(self) -> None:
        self.calls.append(("flush_for_fork",))

    def shutdown(self) -> None:
        self.calls.append(("shutdown",))

    def leave(self) -> None:
        self.calls.append(("leave",))
        self._enrolled = None

    def suspend(self) -> None:
        self.calls.append(("suspend",))

    def resume(self) -> None:
        self.calls.append(("resume",))

    def load(self) -> bool:
        return False

    def gives_address(self, owner: Any) -> None:
        """The address of a tensor or of a storage object was asked for."""
        self.calls.append(("gives_address", type(owner).__name__))

    def reveal_view(self, tensor: Any, how: str) -> None:
        self.calls.append(("reveal_view", how))

    def reveal_history(self, tensor: Any, how: str) -> None:
        self.calls.append(("reveal_history", how))

    def builds_own_nodes(self, how: str) -> None:
        self.calls.append(("builds_own_nodes", how))

    def flag_changed(self, flag: str, value: str) -> None:
        """A setter was called: the flag's name, and what it was set to as text."""
        self.calls.append(("flag_changed",))

    def backward_enter(self, *arguments: Any) -> int:
        self.calls.append(("backward_enter", *arguments))
        return self.backward_decision

    def backward_exit(self, completed: bool) -> None:
        self.calls.append(("backward_exit", completed))

    def set_option(self, key: str, value: int) -> None:
        self.get_option(key)
        self.values[key] = value

    def get_option(self, key: str) -> int:
        if key not in self.values:
            raise ValueError(f"unknown option {key}")
        return self.values[key]

    def rows(self) -> list[dict[str, Any]]:
        return self.kept_rows

    def clear_rows(self) -> None:
        self.kept_rows = []

    def graph(self, fmt: str, lane: str) -> str:
        return f'digraph "{lane}" {{ start -> end }}\n' if fmt == "dot" else f"{fmt} of {lane}\n"

    def timeline(self) -> list[dict[str, Any]]:
        return self.spans

    def reset(self) -> None:
        self.calls.append(("reset",))

    def version(self) -> dict[str, str]:
        return {"build": "double"}


def install() -> FakeCore:
    """Makes ``import outrider._core`` find a new double, in a process that has not loaded the core yet."""
    core = FakeCore()
    sys.modules["outrider._core"] = core
    return core
