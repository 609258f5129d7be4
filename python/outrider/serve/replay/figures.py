"""From the records of a run to its figures, and from runs to a table."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from outrider.serve.replay.drive import Record, RunResult


@dataclass(frozen=True)
class Goal:
    """Both have to be kept for a request's tokens to count."""

    ttft_s: float
    tpot_s: float

    def kept(self, record: Record) -> bool:
        if record.finish != "length" or record.first_s is None:
            return False
        tpot = time_per_token(record)
        return record.first_s - record.due_s <= self.ttft_s and (tpot is None or tpot <= self.tpot_s)


def time_per_token(record: Record) -> float | None:
    """Seconds per token after the first; None for a text of one token."""
    if record.first_s is None or record.last_s is None or record.written < 2:
        return None
    return (record.last_s - record.first_s) / (record.written - 1)


def percentile(values: Sequence[float], share: float) -> float | None:
    """The value at rank ceil(share * n); None of nothing."""
    ordered = sorted(values)
    return ordered[max(0, -(-int(share * 1000) * len(ordered) // 1000) - 1)] if ordered else None


def figures(result: RunResult, goal: Goal) -> dict[str, Any]:
    """Plain numbers; None where a run has nothing to say."""
    done = [record for record in result.records if record.finish == "length"]
    ttft = [record.first_s - record.due_s for record in done if record.first_s is not None]
    tpot = [value for record in done if (value := time_per_token(record)) is not None]
    latency = [record.last_s - record.due_s for record in done if record.last_s is not None]
    whole = [(record.last_s - record.due_s) / record.written for record in done if record.last_s and record.written]
    refused = [record.refused_s for record in result.records if record.refused_s is not None]
    written = sum(record.written for record in result.records)
    good = sum(record.written for record in result.records if goal.kept(record))
    steps, tokens = result.counts["steps"], result.counts["decode_tokens"] + result.counts["prefill_tokens"]
    return {
        "requests": len(result.records),
        "done": len(done),
        "rejected": result.rejected,
        "ended_late": sum(record.finish == "deadline" for record in result.records),
        "seconds": result.seconds,
        "tokens_per_s": written / result.seconds,
        "goodput_tokens_per_s": good / result.seconds,
        "kept_share": sum(goal.kept(record) for record in result.records) / len(result.records),
        **_spread("ttft_s", ttft),
        **_spread("tpot_s", tpot),
        **_spread("latency_s", latency),
        **_spread("normalised_latency_s", whole),
        "refused_s_p99": percentile(refused, 0.99),
        "tokens_per_step": tokens / steps if steps else None,
        "decode_tokens_per_step": result.counts["decode_tokens"] / steps if steps else None,
        "preemptions": result.counts["preemptions"],
        "distinct_experts_per_step": result.counts["distinct_experts"] / steps if steps else None,
        "weight_bytes_per_step": result.counts["weight_bytes"] / steps if steps else None,
        "weight_bytes_per_token": result.counts["weight_bytes"] / tokens if tokens else None,
        "counts": result.counts,
    }


def _spread(name: str, values: list[float]) -> dict[str, float | None]:
    mean, median = (statistics.fmean(values), statistics.median(values)) if values else (None, None)
    high = {f"{name}_p95": percentile(values, 0.95), f"{name}_p99": percentile(values, 0.99)}
    return {f"{name}_mean": mean, f"{name}_median": median, **high}


def summary(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row per rate and policy: the median of its repetitions, with the lowest and highest of each figure."""
    groups: dict[tuple[float, str], list[dict[str, Any]]] = {}
    for one in runs:
        groups.setdefault((one["rate_share"], one["policy"]), []).append(one)
    rows = []
    for (share, policy), members in groups.items():
        row: dict[str, Any] = {"rate_share": share, "policy": policy, "repetitions": len(members)}
        for name, value in members[0].items():
            found = [one[name] for one in members if isinstance(one[name], int | float)]
            if name not in row and isinstance(value, int | float) and found:
                row[name] = {"median": statistics.median(found), "low": min(found), "high": max(found)}
        rows.append(row)
    return rows


COLUMNS = {
    "goodput_tokens_per_s": ("goodput tok/s", 1),
    "kept_share": ("kept %", 100),
    "ttft_s_mean": ("TTFT ms", 1000),
    "ttft_s_p95": ("p95", 1000),
    "ttft_s_p99": ("p99", 1000),
    "tpot_s_mean": ("per token ms", 1000),
    "tpot_s_p95": ("p95", 1000),
    "tpot_s_p99": ("p99", 1000),
    "latency_s_mean": ("whole ms", 1000),
    "latency_s_p95": ("p95", 1000),
    "decode_tokens_per_step": ("live batch", 1),
    "distinct_experts_per_step": ("experts/step", 1),
    "weight_bytes_per_step": ("MB/step", 1e-6),
    "weight_bytes_per_token": ("MB/token", 1e-6),
    "preemptions": ("preempted", 1),
    "rejected": ("refused", 1),
}


def _digits(value: float) -> str:
    """Three significant digits, never as a power of ten."""
    if value == 0:
        return "0"
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def markdown(rows: list[dict[str, Any]]) -> str:
    """Medians; the spread is in the JSON."""
    lines = ["| rate | policy | " + " | ".join(title for title, _ in COLUMNS.values()) + " |"]
    lines.append("| --- | --- |" + " ---: |" * len(COLUMNS))
    for row in rows:
        cells = []
        for name, (_, factor) in COLUMNS.items():
            cells.append(_digits(factor * row[name]["median"]) if name in row else "-")
        lines.append(f"| {row['rate_share']:g} | {row['policy']} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


SPREAD = ("goodput_tokens_per_s", "kept_share", "ttft_s_mean", "tpot_s_mean", "latency_s_mean")


def spread_table(rows: list[dict[str, Any]]) -> str:
    """A few columns, each with the median of the repetitions and the lowest and highest."""
    lines = ["| policy | " + " | ".join(COLUMNS[name][0] for name in SPREAD) + " |"]
    lines.append("| --- |" + " ---: |" * len(SPREAD))
    for row in rows:
        cells = []
        for name in SPREAD:
            found = {which: _digits(COLUMNS[name][1] * value) for which, value in row.get(name, {}).items()}
            cells.append(f"{found['median']} ({found['low']} to {found['high']})" if found else "-")
        lines.append(f"| {row['policy']} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def apart_from_best(rows: list[dict[str, Any]], name: str = "goodput_tokens_per_s") -> tuple[str, list[str]]:
    """The policy with the highest median, and those whose highest repetition is below its lowest."""
    best = max(rows, key=lambda row: row[name]["median"])
    return best["policy"], [row["policy"] for row in rows if row[name]["high"] < best[name]["low"]]
