"""From a request to the keywords of the engine's `submit`."""

import secrets
from collections.abc import Sequence
from typing import Any

from outrider.serve.errors import ApiError

_SEED_MASK = (1 << 64) - 1
TOP_P_MIN = 1e-6


def engine_params(request: Any, *, max_tokens: int | None, logprobs: int, end_ids: Sequence[int]) -> dict[str, Any]:
    """Keywords for one choice; OpenAI's defaults. `max_tokens` None: up to the context; `logprobs` -1: none."""
    return {
        "max_tokens": max_tokens or 0,
        "temperature": 1.0 if request.temperature is None else request.temperature,
        "top_k": max(request.top_k or 0, 0),
        "top_p": 1.0 if request.top_p is None else max(request.top_p, TOP_P_MIN),
        "presence_penalty": request.presence_penalty or 0.0,
        "frequency_penalty": request.frequency_penalty or 0.0,
        "repetition_penalty": 1.0 if request.repetition_penalty is None else request.repetition_penalty,
        "seed": (secrets.randbits(64) if request.seed is None else request.seed) & _SEED_MASK,
        "stop_ids": list(end_ids),
        "logprobs": logprobs,
        "echo_logprobs": False,
        "deadline_ms": request.outrider.deadline_ms or 0,
        "priority": request.outrider.priority,
    }


def for_choice(params: dict[str, Any], index: int) -> dict[str, Any]:
    """The same with the seed of choice `index`, so that n choices differ and each can be had again."""
    return params if index == 0 else {**params, "seed": (params["seed"] + index) & _SEED_MASK}


def deadline_of(header: str | None) -> int | None:
    """Milliseconds of `X-Outrider-Deadline-Ms`; raises ApiError 400."""
    if header is None:
        return None
    digits = header.isascii() and header.isdigit() and len(header) <= 12
    if not digits or not 1 <= int(header) <= 86_400_000:
        message = "X-Outrider-Deadline-Ms: expected 1 to 86400000."
        raise ApiError(400, message, code="invalid_value", param="X-Outrider-Deadline-Ms")
    return int(header)
