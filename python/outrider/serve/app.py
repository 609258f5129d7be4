"""The routes. Each reads one way: access, body, model, ids, engine, answer."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from functools import partial
from importlib import resources
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.exceptions import HTTPException

from outrider.serve import chat, completions, metrics, schema
from outrider.serve.access import admin_access, tenant_of, user_access
from outrider.serve.body import read_json
from outrider.serve.errors import ApiError
from outrider.serve.run import Run
from outrider.serve.sampling import deadline_of
from outrider.serve.sse import ClientGone, EventStream, unless_gone
from outrider.serve.state import ServeState

# Texts longer than this are cut into tokens beside the event loop.
INLINE_CHARS_MAX = 8192
DEADLINE_HEADER = "x-outrider-deadline-ms"
READ = ["GET", "HEAD"]  # monitors and balancers ask for heads

users = APIRouter(dependencies=[Depends(user_access)])
admins = APIRouter(dependencies=[Depends(admin_access)])
anyone = APIRouter()


def create_app(state: ServeState) -> FastAPI:
    """The application of one engine; `state.hub` starts and stops with it."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        state.hub.start()
        try:
            yield
        finally:
            await state.hub.stop()

    app = FastAPI(lifespan=lifespan, openapi_url=None, docs_url=None, redoc_url=None)
    app.state.serve = state
    for router in (users, admins, anyone):
        app.include_router(router)
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(ClientGone, _client_gone)
    app.add_exception_handler(Exception, _unexpected)
    return app


@users.post("/v1/chat/completions")
async def chat_completions(request: Request) -> Response:
    state, asked = _state(request), schema.parse_chat(await read_json(request))
    state.check_model(asked.model)
    ids = await _chat_ids(state, asked.messages)
    state.check_vocabulary(ids)
    run = chat.start_chat(state, asked, ids, _engine_keywords(request))
    if asked.stream:
        return EventStream(chat.chat_chunks(run), run)
    return await _answer(request, run, chat.chat_answer(run))


@users.post("/v1/completions")
async def plain_completions(request: Request) -> Response:
    state, asked = _state(request), schema.parse_completion(await read_json(request))
    state.check_model(asked.model)
    prompts = []
    chars = sum(len(prompt) for prompt in asked.prompts if isinstance(prompt, str))
    for prompt in asked.prompts:
        ids = await _beside(state.tokenizer.encode, prompt, chars) if isinstance(prompt, str) else prompt
        state.check_vocabulary(ids)
        prompts.append(ids)
    run = completions.start_completion(state, asked, prompts, _engine_keywords(request))
    if asked.stream:
        return EventStream(completions.completion_chunks(run), run)
    return await _answer(request, run, completions.completion_answer(run))


@users.api_route("/v1/models", methods=READ)
async def models(request: Request) -> dict[str, Any]:
    return {"object": "list", "data": [_model(_state(request))]}


@users.api_route("/v1/models/{name:path}", methods=READ)
async def model(request: Request, name: str) -> dict[str, Any]:
    state = _state(request)
    state.check_model(name)
    return _model(state)


@users.post("/tokenize")
async def tokenize(request: Request) -> dict[str, Any]:
    state, asked = _state(request), schema.parse_tokenize(await read_json(request))
    state.check_model(asked.model)
    if asked.messages is not None:
        ids = await _chat_ids(state, asked.messages)
    else:
        encode = partial(state.tokenizer.encode, special=asked.add_special_tokens)
        ids = await _beside(encode, asked.prompt or "", len(asked.prompt or ""))
    return {"tokens": ids, "count": len(ids), "max_model_len": state.info["context"]}


@anyone.api_route("/", methods=READ)
async def page() -> HTMLResponse:
    text = resources.files("outrider.serve").joinpath("page.html").read_text(encoding="utf-8")
    policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"
    headers = {"Content-Security-Policy": policy, "X-Frame-Options": "DENY", "Cache-Control": "no-cache"}
    return HTMLResponse(text, headers=headers)


@anyone.api_route("/health", methods=READ)
async def health(request: Request) -> Response:
    """503 when there is work and no step finished for some seconds, or the device is lost."""
    state = _state(request)
    status = "device lost" if state.hub.device_error else "stalled" if state.hub.stalled else "ok"
    body = {"status": status, "device": state.info["device"]}
    return JSONResponse(body, status_code=200 if status == "ok" else 503)


@anyone.api_route("/ready", methods=READ)
async def ready(request: Request) -> Response:
    """503 while no new work is taken."""
    state = _state(request)
    reason = "draining" if state.draining else "stalled" if state.hub.stalled else None
    reason = "device lost" if state.hub.device_error else reason
    return JSONResponse({"ready": reason is None, "reason": reason}, status_code=503 if reason else 200)


@admins.api_route("/metrics", methods=READ)
async def prometheus(request: Request) -> Response:
    return Response(_state(request).metrics.text(), headers={"Content-Type": metrics.CONTENT_TYPE})


@admins.api_route("/admin/stats", methods=READ)
async def stats(request: Request) -> dict[str, Any]:
    state = _state(request)
    now = {"model": state.name, "tokens_per_s": round(state.hub.rate, 2), "open_streams": state.hub.open_streams}
    return {**now, "draining": state.draining, "info": state.info, "stats": state.hub.engine.stats()}


@admins.post("/admin/drain")
async def drain(request: Request) -> Response:
    """No new work; the server ends when what runs has ended."""
    state = _state(request)
    state.start_drain()
    return JSONResponse({"draining": True, "open_streams": state.hub.open_streams}, status_code=202)


def _state(request: Request) -> ServeState:
    return request.app.state.serve


def _engine_keywords(request: Request) -> dict[str, Any]:
    """What headers say: the tenant, and the deadline where there is one."""
    deadline_ms = deadline_of(request.headers.get(DEADLINE_HEADER))
    return tenant_of(request) | ({"deadline_ms": deadline_ms} if deadline_ms else {})


def _model(state: ServeState) -> dict[str, Any]:
    info = state.info
    about = {name: info[name] for name in ("device", "experts", "policy", "weight_format")}
    head = {"id": state.name, "object": "model", "created": state.created, "owned_by": "outrider"}
    return head | {"max_model_len": info["context"], "outrider": about}


async def _answer(request: Request, run: Run, work: Awaitable[dict[str, Any]]) -> Response:
    try:
        answer = await unless_gone(request, work)
        if run.request.logprobs is not None and run.request.logprobs is not False:  # megabytes, while others wait
            return await asyncio.to_thread(JSONResponse, answer)
        return JSONResponse(answer)
    finally:
        run.close("disconnected")  # unless the work was begun and said how it ended


async def _chat_ids(state: ServeState, messages: list[schema.Message]) -> list[int]:
    plain = chat.template_messages(messages)
    return await _beside(state.tokenizer.chat_ids, plain, sum(len(message["content"]) for message in plain))


async def _beside(encode: Any, value: Any, chars: int) -> list[int]:
    return encode(value) if chars <= INLINE_CHARS_MAX else await asyncio.to_thread(encode, value)


async def _api_error(_: Request, error: Any) -> Response:
    return JSONResponse(error.body(), status_code=error.status, headers=error.headers())


async def _http_error(request: Request, error: Any) -> Response:
    message = f"{request.method} {request.url.path[:200]}: {error.detail}"
    return await _api_error(request, ApiError(error.status_code, message, allow=(error.headers or {}).get("Allow")))


async def _client_gone(_: Request, __: Any) -> Response:
    return Response(status_code=499)


async def _unexpected(request: Request, _: Any) -> Response:
    return await _api_error(request, ApiError(500, "The server failed; its log says how.", code="internal_error"))
