"""Who may ask: keys where there are keys, else this machine alone."""

import ipaddress
from typing import Any
from urllib.parse import SplitResult, urlsplit

from fastapi import Request

from outrider.serve.errors import ApiError


def is_loopback(host: str) -> bool:
    """Of a name or address without port."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


async def user_access(request: Request) -> None:
    """Raises ApiError 401 or 403."""
    _check(request, admin=False)


async def admin_access(request: Request) -> None:
    """Raises ApiError 401 or 403."""
    _check(request, admin=True)


def tenant_of(request: Request) -> dict[str, Any]:
    """Whose the request is, as keywords of the engine's `submit`; behind `user_access`. Nobody's without keys."""
    state = request.app.state.serve
    if state.keys is None:
        return {}
    key = request.state.key
    caps = {"tenant_requests_max": key.requests_max, "tenant_tokens_max": key.tokens_max}
    return {"tenant": key.name, "salt": "" if state.share_prefixes else key.name, **caps}


def _check(request: Request, *, admin: bool) -> None:
    keys = request.app.state.serve.keys
    if keys is not None:
        request.state.key = keys.check(request.headers.get("authorization"), admin=admin)
        return
    # Without keys the socket is a loopback one. A page of another site in this machine's browser may still try: it
    # either names another host (a name that resolves to this machine) or sends its own origin.
    host = request.headers.get("host", "")
    if not is_loopback(_parts(f"//{host}").hostname or ""):
        raise ApiError(403, "Without API keys, only requests to a loopback host are answered.", code="host_refused")
    origin = request.headers.get("origin")
    if origin is not None and _parts(origin).netloc != host:
        raise ApiError(403, "Without API keys, pages of other sites are refused.", code="origin_refused")


def _parts(url: str) -> SplitResult:
    """Empty ones of what is no URL: a bracket that is never closed, or no address in it."""
    try:
        return urlsplit(url)
    except ValueError:
        return urlsplit("")
