"""`/v1/chat/completions`: the shapes of OpenAI's chat answers."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from outrider.serve.choice import Delta, LogprobRow
from outrider.serve.run import Run
from outrider.serve.sampling import engine_params
from outrider.serve.schema import ChatRequest, Message
from outrider.serve.state import ServeState


def template_messages(messages: list[Message]) -> list[dict[str, str]]:
    """As chat templates expect them: parts joined, `developer` under its older name."""
    plain = []
    for message in messages:
        content = message.content
        text = content if isinstance(content, str) else "".join(part.text for part in content)
        role = "system" if message.role == "developer" else message.role
        plain.append({"role": role, "content": text} | ({"name": message.name} if message.name else {}))
    return plain


def start_chat(state: ServeState, request: ChatRequest, ids: list[int], keywords: dict[str, Any]) -> Run:
    """Raises ApiError when the engine refuses. `keywords`: of its `submit`, beside those of the body."""
    run = Run(state, "chatcmpl", request, [ids])
    params = engine_params(
        request,
        max_tokens=request.max_tokens,
        logprobs=(request.top_logprobs or 0) if request.logprobs else -1,
        end_ids=state.info["end_ids"],
    )
    run.start(params | keywords)
    return run


async def chat_answer(run: Run) -> dict[str, Any]:
    texts = [""] * len(run.choices)
    rows: list[list[LogprobRow]] = [[] for _ in run.choices]
    async with aclosing(run.deltas()) as deltas:
        async for index, delta in deltas:
            texts[index] += delta.text
            rows[index] += delta.logprobs
    choices = [
        {
            "index": index,
            "message": {"role": "assistant", "content": texts[index], "refusal": None},
            "logprobs": _logprobs(run.state, rows[index]) if run.request.logprobs else None,
            "finish_reason": choice.finish,
        }
        for index, choice in enumerate(run.choices)
    ]
    return _head(run, "chat.completion") | {"choices": choices, "usage": run.usage()}


async def chat_chunks(run: Run) -> AsyncIterator[dict[str, Any]]:
    head = _head(run, "chat.completion.chunk") | ({"usage": None} if run.request.include_usage else {})
    for index in range(len(run.choices)):
        yield head | {"choices": [_chunk_choice(index, {"role": "assistant", "content": ""})]}
    async with aclosing(run.deltas()) as deltas:
        async for index, delta in deltas:
            if delta.text or (run.request.logprobs and delta.logprobs):
                choice = _chunk_choice(index, {"content": delta.text})
                if run.request.logprobs:
                    choice["logprobs"] = _logprobs(run.state, delta.logprobs)
                yield head | {"choices": [choice]} | extension(run, delta)
            if delta.finish is not None:
                yield head | {"choices": [_chunk_choice(index, {}, delta.finish)]}
    if run.request.include_usage:
        yield head | {"choices": [], "usage": run.usage()}


def extension(run: Run, delta: Delta) -> dict[str, Any]:
    """Our own field of a chunk, where it was asked for: `pieces` [text, expert], together the chunk's text."""
    return {"outrider": {"pieces": delta.pieces}} if run.request.outrider.experts else {}


def _head(run: Run, kind: str) -> dict[str, Any]:
    return {"id": run.id, "object": kind, "created": run.created, "model": run.state.name}


def _chunk_choice(index: int, delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}


def _logprobs(state: ServeState, rows: list[LogprobRow]) -> dict[str, Any]:
    return {"content": [_logprob(state, row) for row in rows], "refusal": None}


def _logprob(state: ServeState, row: LogprobRow) -> dict[str, Any]:
    token, logprob, top = row
    return _named(state, token, logprob) | {"top_logprobs": [_named(state, *other) for other in top]}


def _named(state: ServeState, token: int, logprob: float) -> dict[str, Any]:
    tokenizer = state.tokenizer
    return {"token": tokenizer.token_text(token), "logprob": logprob, "bytes": tokenizer.token_bytes(token)}
