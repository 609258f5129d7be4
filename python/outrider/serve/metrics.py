"""Prometheus metrics: the engine's counters under their published names, and what only the front end can time."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1)

# Key of the engine's stats -> name without prefix and unit suffix rules, help. A value that is a dict becomes one
# sample per entry, under the label that is named last.
_GAUGES = {
    "queued": ("queue_requests", "Requests that wait for KV pages"),
    "running": ("running_requests", "Requests that hold KV pages"),
    "tokens_admitted": ("queue_tokens", "Tokens of admitted prompts and texts to be"),
    "hold_steps_max": ("hold_steps", "The longest that an item was passed over, in steps"),
    "hold_age_max": ("hold_age_max", "Steps after which a held token is overdue, 0 where none is held"),
    "ttft_goal_s": ("ttft_goal_seconds", "Goal of the time to the first token, 0: none"),
    "tpot_goal_s": ("tpot_goal_seconds", "Goal of the time per token, 0: none"),
    "texts_max": ("texts_max", "Requests that may run at once, as the goal of the time per token allows"),
    "fit_step_s": ("fit_step_seconds", "Fitted time of a step without its tokens"),
    "fit_text_s": ("fit_text_token_seconds", "Fitted time that a text adds to a step"),
    "fit_prompt_token_s": ("fit_prompt_token_seconds", "Fitted time that a token of a prompt adds to a step"),
    "bytes_per_s": ("weight_bytes_per_second", "Measured rate of weight reading"),
    "prefill_tokens_per_s": ("prefill_tokens_per_second", "Measured rate of prefill"),
}
_COUNTERS = {
    "steps": ("steps", "Steps that ran"),
    "prompt_steps": ("prompt_steps", "Steps that ran tokens of prompts"),
    "failed_steps": ("failed_steps", "Steps that failed"),
    "written_tokens": ("goodput_tokens", "Tokens written"),
    "held_items": ("held_items", "Items left out of a step on purpose"),
    "distinct_experts": ("distinct_experts", "Distinct experts, summed over steps"),
    "weight_bytes": ("weight_bytes", "Weight bytes read"),
    "ffn_bytes": ("ffn_bytes", "Weight bytes read that depend on experts"),
    "prefix_hit_tokens": ("prefix_hit_tokens", "Prompt tokens whose keys another text had"),
    "plan_hit_tokens": ("plan_hit_tokens", "Prompt tokens whose expert another text had"),
    "routed_tokens": ("routed_tokens", "Tokens that the router read"),
    "preemptions": ("preemptions", "Requests that gave their KV pages back"),
    "plan_mismatches": ("plan_mismatch", "Experts that a second pass of the router did not confirm"),
    "unplanned_tokens": ("unplanned_tokens", "Tokens executed without an expert in the plan"),
    "invariant_violations": ("invariant_violations", "Checks of the engine that failed"),
    "late_first": ("late_first", "Requests ended because their first token could not come in time any more"),
    "slow_readers": ("slow_readers", "Requests cancelled because nobody read them"),
    "executor_s": ("executor_seconds", "Time in the executor"),
    "prompt_pass_s": ("prompt_pass_seconds", "Of the executor's time, passes that prompts had for themselves"),
    "router_s": ("router_seconds", "Time that steps waited for the router"),
    "policy_s": ("plan_seconds", "Time in the policy"),
    "host_s": ("host_seconds", "Time of steps outside executor, router and policy"),
}
_LABELLED = {
    "expert_tokens": ("expert_tokens", "Tokens executed, by expert", "expert"),
    "rejected": ("rejected", "Requests not taken, by reason", "reason"),
    "degraded": ("degraded", "Times that a lesser mode was entered", "reason"),
}


class Metrics:
    """One registry per server, so that several may live in a process. `stats` gives the engine's counters."""

    def __init__(self, stats: Callable[[], dict[str, Any]], labels: dict[str, str]) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_EngineCollector(stats, labels))  # type: ignore[arg-type]
        self.requests = Counter("outrider_requests", "HTTP requests by outcome", ["outcome"], registry=self.registry)
        self.ttft = self._histogram("ttft_seconds", "Time to the first token", _SECONDS)
        self.tpot = self._histogram("tpot_seconds", "Time per token after the first", _TOKEN_SECONDS)
        self.e2e = self._histogram("e2e_seconds", "Time to the last token", _SECONDS)
        self.normalised = self._histogram("normalised_latency_seconds", "Whole time per token", _TOKEN_SECONDS)

    def observe(self, started: float, first: float, last: float, written: int) -> None:
        """One choice that ended; times in seconds of the monotonic clock."""
        self.ttft.observe(first - started)
        if written > 1:
            self.tpot.observe((last - first) / (written - 1))
        self.e2e.observe(last - started)
        self.normalised.observe((last - started) / written)

    def text(self) -> bytes:
        return generate_latest(self.registry)

    def _histogram(self, name: str, documentation: str, buckets: Iterable[float]) -> Histogram:
        return Histogram(f"outrider_{name}", documentation, buckets=tuple(buckets), registry=self.registry)


class _EngineCollector:
    def __init__(self, stats: Callable[[], dict[str, Any]], labels: dict[str, str]) -> None:
        self._stats, self._labels = stats, labels

    def collect(self) -> Iterator[Metric]:
        stats = self._stats()
        for key, (name, text) in _GAUGES.items():
            if key in stats:
                yield GaugeMetricFamily(f"outrider_{name}", text, value=stats[key])
        for key, (name, text) in _COUNTERS.items():
            if key in stats:
                yield CounterMetricFamily(f"outrider_{name}", text, value=stats[key])
        for key, (name, text, label) in _LABELLED.items():
            family = CounterMetricFamily(f"outrider_{name}", text, labels=[label])
            for entry, value in (stats.get(key) or {}).items():
                family.add_metric([str(entry)], value)
            yield family
        yield self._lanes(stats)
        yield self._pages(stats)
        step = stats.get("step_seconds")
        if step:
            yield _histogram("outrider_step_seconds", "Time of a step", step)
        build = GaugeMetricFamily("outrider_build_info", "What runs", labels=list(self._labels))
        build.add_metric(list(self._labels.values()), 1)
        yield build

    @staticmethod
    def _lanes(stats: dict[str, Any]) -> Metric:
        family = CounterMetricFamily("outrider_tokens", "Tokens executed, by lane", labels=["lane"])
        for lane in ("prefill", "decode"):
            family.add_metric([lane], stats.get(f"{lane}_tokens", 0))
        return family

    @staticmethod
    def _pages(stats: dict[str, Any]) -> Metric:
        family = GaugeMetricFamily("outrider_kv_pages", "KV pages, by state", labels=["state"])
        used, cached = stats.get("kv_pages_used", 0), stats.get("kv_pages_cached", 0)
        for state, value in (("used", used), ("cached", cached), ("free", stats.get("kv_pages", 0) - used - cached)):
            family.add_metric([state], value)
        return family


def _histogram(name: str, text: str, step: dict[str, Any]) -> Metric:
    """`step`: bounds, counts (one more than bounds), sum."""
    family = HistogramMetricFamily(name, text)
    total, buckets = 0, []
    for bound, count in zip([*map(str, step["bounds"]), "+Inf"], step["counts"], strict=True):
        total += count
        buckets.append((bound, total))
    family.add_metric([], buckets, step["sum"])
    return family
