"""One run: a load at a rate through one engine, in this thread, open loop."""

import select
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

POLL_EVENTS = 256
COUNTED = ("steps", "weight_bytes", "ffn_bytes", "distinct_experts", "decode_tokens", "prefill_tokens", "held_items")
COUNTED += ("prefix_hit_tokens", "preemptions", "plan_mismatches", "unplanned_tokens")
COUNTED += ("executor_s", "prompt_steps", "prompt_pass_s", "router_s", "policy_s", "host_s")


@dataclass
class Record:
    """Times in seconds of the monotonic clock, from when the request was due."""

    due_s: float
    first_s: float | None = None
    last_s: float | None = None
    written: int = 0
    finish: str | None = None
    refused_s: float | None = None  # how long the refusal took
    experts: list[int] = field(default_factory=list)


@dataclass
class RunResult:
    records: list[Record]
    seconds: float  # from the first arrival to the last event
    counts: dict[str, float]  # what the engine's stats grew by
    rejected: int


def run(
    engine: Any,
    rejected: type[Exception],
    prompts: list[list[int]],
    lengths: list[int],
    due_s: list[float],
    *,
    limit_s: float,
    patient: bool = False,
    temperature: float = 0.0,
) -> RunResult:
    """Submits each prompt when it is due and reads until all ended, `limit_s` at most; then cancels the rest.

    `patient`: what the engine refuses is tried again after its next event, instead of counting as rejected; with all
    arrivals at 0 this measures what the engine does at most. With a `temperature` tokens are drawn, by seeds of their
    own, so that a text is the same in every run.
    """
    return _Driver(engine, rejected, prompts, lengths, due_s, patient, temperature).run(limit_s)


class _Driver:
    def __init__(
        self,
        engine: Any,
        rejected: type[Exception],
        prompts: list[list[int]],
        lengths: list[int],
        due_s: list[float],
        patient: bool,
        temperature: float,
    ) -> None:
        self.engine, self.refusal, self.prompts, self.lengths = engine, rejected, prompts, lengths
        self.patient, self.temperature = patient, temperature
        self.records = [Record(due) for due in due_s]
        self.streams: dict[int, Record] = {}
        self.next = 0
        self.rejected = 0

    def run(self, limit_s: float) -> RunResult:
        before = self.engine.stats()
        started = time.monotonic()
        now: Callable[[], float] = lambda: time.monotonic() - started  # noqa: E731
        while (self.next < len(self.records) or self.streams) and now() < limit_s:
            self._submit_due(now)
            due = self.records[self.next].due_s if self.next < len(self.records) else limit_s
            left = due - now()
            wait = 0.05 if left <= 0 else min(left, 0.05)
            if select.select([self.engine.event_fd], [], [], wait)[0]:
                self._read(now)
        for stream in self.streams:
            self.engine.cancel(stream)
        seconds = max((record.last_s or 0 for record in self.records), default=0) or now()
        after = self.engine.stats()
        counts = {name: after.get(name, 0) - before.get(name, 0) for name in COUNTED}
        return RunResult(self.records, seconds, counts, self.rejected)

    def _submit_due(self, now: Callable[[], float]) -> None:
        while self.next < len(self.records) and self.records[self.next].due_s <= now():
            record, asked = self.records[self.next], now()
            params = _params(self.lengths[self.next], self.next, self.temperature)
            try:
                stream = self.engine.submit(self.prompts[self.next], **params)
            except self.refusal as error:
                if self.patient and getattr(error, "code", "") == "E_BUSY":
                    return
                self.rejected += 1
                record.finish, record.refused_s = "rejected", now() - asked
            else:
                self.streams[stream] = record
            self.next += 1

    def _read(self, now: Callable[[], float]) -> None:
        for event in self.engine.poll(POLL_EVENTS):
            record = self.streams.get(event["stream"])
            if record is None:
                continue
            record.experts += event["experts"] or []
            if event["tokens"]:
                record.last_s = now()
                record.first_s = record.first_s or record.last_s
                record.written += len(event["tokens"])
            if event["finish"] is not None:
                record.finish = event["finish"]
                del self.streams[event["stream"]]


def _params(length: int, seed: int, temperature: float) -> dict[str, Any]:
    """Of a fixed length: nothing ends a text but `length`."""
    return {
        "max_tokens": length,
        "temperature": temperature,
        "top_k": 0,
        "top_p": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "repetition_penalty": 1.0,
        "seed": seed,
        "stop_ids": [],
        "logprobs": -1,
        "echo_logprobs": False,
        "deadline_ms": 0,
        "priority": 0,
    }
