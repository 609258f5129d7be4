"""Outrider: decide ahead on the host, execute at full speed on the device.

Python face of imperative-symbolic co-execution::

    import outrider

    step = outrider.coexec(step)        # nothing else changes
    ...
    outrider.explain()                  # what was covered, and why the rest was not

``OUTRIDER=0`` in the environment switches everything off: :func:`coexec` then returns its
argument unchanged, and neither torch nor the native core is touched.
"""

from outrider._runtime import enabled as _enabled

if _enabled():
    from outrider._version_check import require_torch as _require_torch

    _require_torch()

from outrider.api import clear, coexec, flush, options, report, reset, step, uninstall
from outrider.explain import explain
from outrider.graph_export import graph, save_graph
from outrider.timeline import save_timeline

__all__ = [
    "clear",
    "coexec",
    "explain",
    "flush",
    "graph",
    "options",
    "report",
    "reset",
    "save_graph",
    "save_timeline",
    "step",
    "uninstall",
]
