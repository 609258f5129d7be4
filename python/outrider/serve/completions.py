"""`/v1/completions`: plain texts, with the log-probabilities that evaluation programs read."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from outrider.serve.chat import extension
from outrider.serve.choice import LogprobRow
from outrider.serve.run import Run
from outrider.serve.sampling import engine_params
from outrider.serve.schema import CompletionRequest
from outrider.serve.state import ServeState

DEFAULT_TOKENS = 16


def start_completion(
    state: ServeState, request: CompletionRequest, prompts: list[list[int]], keywords: dict[str, Any]
) -> Run:
    """Raises ApiError when the engine refuses. An echo alone (`max_tokens` 0) costs one token, which is dropped."""
    run = Run(state, "cmpl", request, prompts)
    limit = DEFAULT_TOKENS if request.max_tokens is None else request.max_tokens
    params = engine_params(
        request,
        max_tokens=max(limit, 1),
        logprobs=-1 if request.logprobs is None else request.logprobs,
        end_ids=state.info["end_ids"],
    )
    params["echo_logprobs"] = bool(request.echo) and request.logprobs is not None
    run.start(params | keywords, limit=limit)
    return run


async def completion_answer(run: Run) -> dict[str, Any]:
    parts = [_Part(run, index) for index in range(len(run.choices))]
    async with aclosing(run.deltas()) as deltas:
        async for index, delta in deltas:
            parts[index].text += delta.text
            parts[index].prompt_rows += delta.prompt_logprobs
            parts[index].rows += delta.logprobs
    choices = []
    for part in parts:
        choices.append(part.choice(run.choices[part.index].finish))
        await asyncio.sleep(0)  # one with many log-probabilities takes its time
    return _head(run) | {"choices": choices, "usage": run.usage()}


async def completion_chunks(run: Run) -> AsyncIterator[dict[str, Any]]:
    head = _head(run) | ({"usage": None} if run.request.include_usage else {})
    waiting = {index: _Part(run, index) for index in range(len(run.choices))}
    offsets = [0] * len(run.choices)
    async with aclosing(run.deltas()) as deltas:
        async for index, delta in deltas:
            part = waiting[index]
            part.text, part.rows = delta.text, delta.logprobs
            part.prompt_rows += delta.prompt_logprobs
            if part.echoes and not run.choices[index].written and delta.finish is None:
                continue  # the prompt goes out whole
            choice = part.choice(delta.finish, offsets[index])
            offsets[index] = part.end
            waiting[index] = _Part(run, index, echoes=False)
            if choice["text"] or choice["logprobs"] or delta.finish:
                yield head | {"choices": [choice]} | extension(run, delta)
    if run.request.include_usage:
        yield head | {"choices": [], "usage": run.usage()}


class _Part:
    """Text and rows of one choice until they are sent, the prompt's in front where it is echoed."""

    def __init__(self, run: Run, index: int, *, echoes: bool = True) -> None:
        self.run, self.index = run, index
        self.echoes = echoes and bool(run.request.echo)
        self.text = ""
        self.prompt_rows: list[LogprobRow] = []
        self.rows: list[LogprobRow] = []
        self.end = 0  # offset in the text behind the last row, once it was made

    def choice(self, finish: str | None, offset: int = 0) -> dict[str, Any]:
        prompt = self.run.choices[self.index].prompt
        text = (self.run.state.tokenizer.decode(prompt) if self.echoes else "") + self.text
        rows: list[LogprobRow | None] = list(self.rows)
        first = None
        if self.echoes and self.run.request.logprobs is not None:
            own = self.prompt_rows[-(len(prompt) - 1) :] if len(prompt) > 1 else []
            first, rows = prompt[0], [None, *own, *self.rows]  # nothing stands before the first token
        wanted = self.run.request.logprobs is not None
        logprobs = None
        if wanted:
            logprobs, self.end = _logprobs(self.run.state, rows, first, offset)
        return {"index": self.index, "text": text, "logprobs": logprobs, "finish_reason": finish}


def _logprobs(
    state: ServeState, rows: list[LogprobRow | None], first: int | None, offset: int
) -> tuple[dict[str, Any], int]:
    """Four lists, one entry a token, and the offset behind the last; `first` is the token of a row None."""
    ids: list[int] = [row[0] if row is not None else first for row in rows]  # type: ignore[misc]
    offsets = []
    for token in ids:
        raw = state.tokenizer.token_bytes(token) or state.tokenizer.token_text(token).encode()
        begins = [byte & 0xC0 != 0x80 for byte in raw]  # a character; the others go on with one
        offsets.append(max(offset - (not begins[0]), 0) if raw else offset)
        offset += sum(begins)
    lists = {
        "tokens": [state.tokenizer.token_text(token) for token in ids],
        "token_logprobs": [None if row is None else row[1] for row in rows],
        "top_logprobs": [None if row is None else _top(state, row) for row in rows],
        "text_offset": offsets,
    }
    return lists, offset


def _top(state: ServeState, row: LogprobRow) -> dict[str, float]:
    """Of tokens with the same text, the most likely; the token itself is always there, as OpenAI does it."""
    best: dict[str, float] = {}
    for token, logprob in [*row[2], (row[0], row[1])]:
        text = state.tokenizer.token_text(token)
        best[text] = max(logprob, best.get(text, logprob))
    return best


def _head(run: Run) -> dict[str, Any]:
    return {"id": run.id, "object": "text_completion", "created": run.created, "model": run.state.name}
