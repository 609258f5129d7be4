"""A deterministic double of the serving engine, and a tokenizer of bytes: what the front end needs, without a model.

The engine repeats the prompt's own bytes, or what `script` says; a token's expert is its id modulo the experts.
"""

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SPECIAL = ["<|text|>", "<|begin|>", "<|end|>"]
END = 2
TEMPLATE = (
    "{% for message in messages %}{{ '<|begin|>' + message['role'] + '\n' + message['content'] + '<|end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|begin|>assistant\n' }}{% endif %}"
)


def make_folder(folder: Path, template: str | None = TEMPLATE) -> Path:
    """Tokenizer files whose ids are SPECIAL and then one per byte; a config so that it looks like a model."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = {name: number for number, name in enumerate(SPECIAL + alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=names, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in SPECIAL])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"bos_token": "<|begin|>", "eos_token": "<|end|>"} | ({"chat_template": template} if template else {})
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "config.json").write_text(json.dumps({"vocab_size": len(names)}))
    return folder


class ServeRejected(Exception):
    def __init__(self, code: str, message: str, retry_after_s: float = 0) -> None:
        super().__init__(message)
        self.code, self.retry_after_s = code, retry_after_s


class _Stream:
    def __init__(self, prompt: list[int], params: dict[str, Any], text: list[int]) -> None:
        self.prompt, self.params, self.text = prompt, params, text
        self.written = 0
        self.end_s = time.monotonic() + params["deadline_ms"] / 1000 if params["deadline_ms"] else None
        self.cancelled = False


class FakeEngine:
    """One thread writes one token of every stream each `token_s` seconds. `calls` records submits and cancels."""

    def __init__(
        self,
        *,
        experts: int = 7,
        context: int = 4096,
        streams_max: int = 64,
        token_s: float = 0.0,
        script: Callable[[list[int]], list[int]] | None = None,
    ) -> None:
        self.info = {
            "vocab": 259,
            "context": context,
            "experts": experts,
            "policy": "outrider",
            "device": "cpu",
            "weight_format": "float32",
            "end_ids": [END],
        }
        self.calls: list[tuple[str, Any]] = []
        self.token_s, self.streams_max = token_s, streams_max
        self.fail_after: int | None = None  # tokens of a stream, then it ends with an error
        self.frozen = False  # no step finishes
        self.degraded: dict[str, int] = {}
        self.device_error = ""
        self.event_fd = os.eventfd(0, os.EFD_NONBLOCK)
        self._drawn = script is None  # what the seed decides: where the repeated text begins
        self._script = script or (lambda prompt: [token for token in prompt if token >= len(SPECIAL)])
        self._streams: dict[int, _Stream] = {}
        self._events: list[dict[str, Any]] = []
        self._lock = threading.Condition()
        self._next, self._steps, self._written, self._prefilled = 1, 0, 0, 0
        self._rejected: dict[str, int] = {}
        self._draining = self._stop = False
        self._thread = threading.Thread(target=self._run, name="fake-engine", daemon=True)
        self._thread.start()

    def submit(self, prompt: list[int], **params: Any) -> int:
        assert set(params) - {"tenant", "tenant_requests_max", "tenant_tokens_max", "salt"} == {
            *("max_tokens", "temperature", "top_k", "top_p", "presence_penalty", "frequency_penalty"),
            *("repetition_penalty", "seed", "stop_ids", "logprobs", "echo_logprobs", "deadline_ms", "priority"),
        }
        with self._lock:
            self._check(prompt, params)
            room = self.info["context"] - len(prompt)
            limit = min(params["max_tokens"] or room, room)
            text = self._script(prompt)
            if params["temperature"] > 0 and text and self._drawn:
                first = params["seed"] % len(text)
                text = text[first:] + text[:first]
            stream = self._next
            self._next += 1
            self._streams[stream] = _Stream(prompt, {**params, "limit": limit}, text)
            self._prefilled += len(prompt)
            self.calls.append(("submit", params))
            self._lock.notify()
            return stream

    def _check(self, prompt: list[int], params: dict[str, Any]) -> None:
        rejected = None
        tenant, most = params.get("tenant", ""), params.get("tenant_requests_max", 0)
        of_tenant = [stream for stream in self._streams.values() if stream.params.get("tenant", "") == tenant]
        if self.device_error:
            rejected = ServeRejected("E_DEVICE", self.device_error)
        elif self._draining:
            rejected = ServeRejected("E_DRAINING", "no new work")
        elif len(prompt) >= self.info["context"]:
            rejected = ServeRejected("E_CONTEXT", f"prompt: {len(prompt)} tokens, context {self.info['context']}")
        elif len(self._streams) >= self.streams_max:
            rejected = ServeRejected("E_BUSY", "too many requests", 2.5)
        elif most and len(of_tenant) >= most:
            rejected = ServeRejected("E_TENANT", "too many requests of this key", 1)
        if rejected:
            self._rejected[rejected.code] = self._rejected.get(rejected.code, 0) + 1
            raise rejected

    def cancel(self, stream: int) -> None:
        with self._lock:
            self.calls.append(("cancel", stream))
            if stream in self._streams:
                self._streams[stream].cancelled = True

    def poll(self, limit: int) -> list[dict[str, Any]]:
        with self._lock:
            taken, self._events = self._events[:limit], self._events[limit:]
            if not self._events:
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(self.event_fd)
            return taken

    def stats(self) -> dict[str, Any]:
        with self._lock:
            return {
                "running": len(self._streams),
                "queued": 0,
                "steps": self._steps,
                "written_tokens": self._written,
                "decode_tokens": self._written,
                "prefill_tokens": self._prefilled,
                "kv_pages": 100,
                "kv_pages_used": len(self._streams),
                "kv_pages_cached": 0,
                "distinct_experts": self._steps * min(self.info["experts"], 3),
                "expert_tokens": {0: self._written},
                "rejected": dict(self._rejected),
                "degraded": dict(self.degraded),
                "device_error": self.device_error,
                "step_seconds": {"bounds": [0.01, 0.1], "counts": [self._steps, 0, 0], "sum": 0.001 * self._steps},
            }

    def drain(self) -> None:
        with self._lock:
            self._draining = True

    def wait_idle(self, timeout_s: float) -> bool:
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            with self._lock:
                if not self._streams:
                    return True
            time.sleep(0.005)
        return False

    def close(self) -> None:
        with self._lock:
            if self._stop:
                return
            self._stop = True
            self._lock.notify()
        self._thread.join(5)
        os.close(self.event_fd)

    def _run(self) -> None:
        while True:
            with self._lock:
                while not self._stop and (not self._streams or self.frozen):
                    self._lock.wait(0.05)
                if self._stop:
                    return
                self._steps += 1
                for number in list(self._streams):
                    self._step(number, self._streams[number])
                os.eventfd_write(self.event_fd, 1)
            time.sleep(self.token_s)

    def _step(self, number: int, stream: _Stream) -> None:
        event: dict[str, Any] = {"stream": number, "tokens": [], "experts": [], "logprobs": [], "finish": None}
        event |= {"error": "", "prompt_tokens": len(stream.prompt), "cached_tokens": 0, "written_tokens": 0}
        if stream.written == 0:
            event["experts"] = self._experts(stream.prompt)
            if stream.params["echo_logprobs"]:
                event["logprobs"] = [_row(token, stream.params["logprobs"]) for token in stream.prompt[1:]]
        event["finish"] = self._finish(stream, event)
        if event["finish"] is not None:
            event["written_tokens"] = stream.written
            del self._streams[number]
        if event["tokens"] or event["experts"] or event["finish"]:
            self._events.append(event)

    def _finish(self, stream: _Stream, event: dict[str, Any]) -> str | None:
        if stream.cancelled:
            return "cancelled"
        if stream.end_s is not None and time.monotonic() > stream.end_s:
            return "deadline"
        if self.fail_after is not None and stream.written >= self.fail_after:
            event["error"] = "the executor failed"
            return "error"
        if stream.written >= len(stream.text):
            return "stop"
        token = stream.text[stream.written]
        if token in stream.params["stop_ids"]:
            return "stop"
        stream.written += 1
        self._written += 1
        event["tokens"] = [token]
        event["experts"] = event["experts"] + self._experts([token])
        if stream.params["logprobs"] >= 0:
            event["logprobs"].append(_row(token, stream.params["logprobs"]))
        return "length" if stream.written >= stream.params["limit"] else None

    def _experts(self, tokens: list[int]) -> list[int]:
        return [token % self.info["experts"] for token in tokens] if self.info["experts"] else []


def _row(token: int, count: int) -> tuple[int, float, list[tuple[int, float]]]:
    return token, -0.25, [((token + place) % 259, -0.25 * (place + 1)) for place in range(count)]
