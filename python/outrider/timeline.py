"""The timeline of both runners, for Perfetto or chrome://tracing.

The file is in the Trace Event Format: https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from outrider import _runtime

_THREAD_IDS = {"imperative": 1, "graph runner": 2}
# Flow arrows bind to the slice that is open at their time stamp, so they end just inside it: 1 ns.
_INSIDE_US = 0.001


def save_timeline(path: str | Path) -> Path:
    """Writes the recorded spans of both runners as Chrome trace JSON; times are in microseconds.

    Arrows lead from what a runner did to the wait of the other runner that it ended. Open the file
    in https://ui.perfetto.dev.
    """
    path = Path(path)
    spans = _runtime.core().timeline() if _runtime.enabled() else []
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(chrome_trace(spans)), encoding="utf-8")
    return path


def chrome_trace(spans: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The core's spans as a Trace Event object.

    A span is ``{name, thread, start_us, dur_us, kind, args}``; ``args["seq"]``, where present, numbers a
    message between the two threads: a wait and the span it waited for carry the same number.
    """
    spans = sorted(spans, key=lambda span: span["start_us"])
    process_id = os.getpid()
    thread_ids = dict(_THREAD_IDS)
    for span in spans:
        thread_ids.setdefault(span["thread"], len(thread_ids) + 1)
    events = _naming_events(process_id, thread_ids)
    events += [_complete_event(span, process_id, thread_ids) for span in spans]
    events += _flow_events(spans, process_id, thread_ids)
    return {"displayTimeUnit": "ms", "traceEvents": events}


def _naming_events(process_id: int, thread_ids: dict[str, int]) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = [
        {"ph": "M", "name": "process_name", "pid": process_id, "tid": 0, "args": {"name": "outrider coexec"}}
    ]
    for name, thread_id in thread_ids.items():
        identity = {"ph": "M", "pid": process_id, "tid": thread_id}
        events.append({**identity, "name": "thread_name", "args": {"name": name}})
        events.append({**identity, "name": "thread_sort_index", "args": {"sort_index": thread_id}})
    return events


def _complete_event(span: dict[str, Any], process_id: int, thread_ids: dict[str, int]) -> dict[str, Any]:
    return {
        "ph": "X",
        "name": span["name"],
        "cat": span["kind"],
        "pid": process_id,
        "tid": thread_ids[span["thread"]],
        "ts": span["start_us"],
        "dur": span["dur_us"],
        "args": dict(span.get("args") or {}),
    }


def _flow_events(spans: list[dict[str, Any]], process_id: int, thread_ids: dict[str, int]) -> list[dict[str, Any]]:
    """One arrow for each wait: from the end of the span with the same ``seq`` on another thread to the wait's end."""
    causes: dict[int, list[dict[str, Any]]] = {}
    for span in spans:
        sequence = (span.get("args") or {}).get("seq")
        if sequence is not None and span["kind"] != "wait":
            causes.setdefault(sequence, []).append(span)
    events = []
    for wait in spans:
        sequence = (wait.get("args") or {}).get("seq")
        if wait["kind"] != "wait" or sequence is None:
            continue
        cause = next((span for span in causes.get(sequence, ()) if span["thread"] != wait["thread"]), None)
        if cause is None:
            continue
        wait_end_us = _just_before_end_us(wait)
        cause_end_us = min(_just_before_end_us(cause), wait_end_us)
        flow = {"cat": "wait", "name": "released", "id": len(events) // 2 + 1, "pid": process_id}
        events.append({**flow, "ph": "s", "tid": thread_ids[cause["thread"]], "ts": cause_end_us})
        events.append({**flow, "ph": "f", "bp": "e", "tid": thread_ids[wait["thread"]], "ts": wait_end_us})
    return events


def _just_before_end_us(span: dict[str, Any]) -> float:
    return span["start_us"] + max(0.0, span["dur_us"] - _INSIDE_US)
