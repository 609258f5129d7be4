"""Request bodies: bounded in size, time and depth before anything looks at them."""

import asyncio
import json
from typing import Any

from starlette.requests import ClientDisconnect, Request

from outrider.serve.errors import ApiError

BODY_BYTES_MAX = 8 << 20
BODY_READ_S = 30.0
JSON_DEPTH_MAX = 16
JSON_MEMBERS_MAX = 1024  # of an object


async def read_json(request: Request) -> dict[str, Any]:
    """The JSON object in the body.

    Raises:
        ApiError: 413 for a body over BODY_BYTES_MAX, 408 for one that takes over BODY_READ_S, 415 for a compressed one,
            400 for what is no JSON object in UTF-8, is nested deeper than JSON_DEPTH_MAX or has an object of more than
            JSON_MEMBERS_MAX members.
    """
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.strip().lower() not in ("", "identity"):
        message = f"Content-Encoding: {encoding[:40]!r} is not supported; send the body as it is."
        raise ApiError(415, message, code="unsupported_encoding", param="Content-Encoding")
    try:
        async with asyncio.timeout(BODY_READ_S):
            raw = await _read(request)
    except TimeoutError:
        raise ApiError(408, f"The body did not arrive within {BODY_READ_S:.0f} s.", code="timeout") from None
    except ClientDisconnect:
        raise ApiError(400, "The body ended early.", code="invalid_body") from None
    return parse_object(raw)


async def _read(request: Request) -> bytes:
    too_large = ApiError(413, f"The body is larger than {BODY_BYTES_MAX} bytes.", code="body_too_large")
    declared = request.headers.get("content-length", "0")
    if declared.isdigit() and int(declared) > BODY_BYTES_MAX:
        raise too_large
    raw = bytearray()
    async for part in request.stream():
        raw += part
        if len(raw) > BODY_BYTES_MAX:
            raise too_large
    return bytes(raw)


def parse_object(raw: bytes) -> dict[str, Any]:
    """Raises ApiError 400 for anything but a JSON object that RFC 8259 allows, of limited depth."""
    try:
        value = json.loads(raw.decode("utf-8"), parse_constant=_no_constant, object_pairs_hook=_object)
    except UnicodeDecodeError as error:
        raise ApiError(400, f"The body is not UTF-8: byte {error.start}.", code="invalid_utf8") from None
    except RecursionError:
        raise _too_deep() from None
    except ValueError as error:
        raise ApiError(400, f"The body is not JSON: {str(error)[:160]}", code="invalid_json") from None
    if not isinstance(value, dict):
        raise ApiError(400, f"The body is a {type(value).__name__}, not an object.", code="invalid_json")
    _check_nested(value)
    return value


def _object(members: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(members) > JSON_MEMBERS_MAX:
        raise ValueError(f"an object has {len(members)} members, at most {JSON_MEMBERS_MAX} are taken")
    return dict(members)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _too_deep() -> ApiError:
    return ApiError(400, f"The body is nested deeper than {JSON_DEPTH_MAX} levels.", code="invalid_json")


def _check_nested(value: Any) -> None:
    """Depth, and strings that are no text: a lone surrogate escape has no UTF-8 form."""
    level = [value]
    for _ in range(JSON_DEPTH_MAX):
        below: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                below += item.keys()
                below += item.values()
            elif isinstance(item, list):
                below += item
            elif isinstance(item, str) and not item.isascii():
                _check_text(item)
        if not below:
            return
        level = below
    raise _too_deep()


def _check_text(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        found = repr(text[error.start])
        raise ApiError(400, f"A string holds the lone surrogate {found}.", code="invalid_utf8") from None
