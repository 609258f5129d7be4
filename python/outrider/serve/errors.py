"""Failures as OpenAI's clients know them."""

from typing import Any

# Exit code of `outrider serve` after a drain that left something behind.
EXIT_LEAK = 3


class ApiError(Exception):
    """An answer other than 200. `param` names the field of the request that is at fault."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after_s: float = 0,
        allow: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.retry_after_s, self.allow = retry_after_s, allow

    @property
    def kind(self) -> str:
        kinds = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
        return kinds.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")

    def body(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

    def headers(self) -> dict[str, str]:
        """`Retry-After` in whole seconds, at least 1, where there is a time to wait; the methods that a route has."""
        if self.allow:
            return {"Allow": self.allow}
        if self.status == 401:
            return {"WWW-Authenticate": "Bearer"}
        if not self.retry_after_s and self.status != 429:
            return {}
        return {"Retry-After": str(min(max(int(-(-self.retry_after_s // 1)), 1), 60))}


def rejection(error: Any) -> ApiError:
    """The answer to a request that the engine did not take (`ServeRejected`)."""
    message = str(error).removeprefix(f"error {error.code}: ")
    if error.code == "E_CONTEXT":
        param = "max_tokens" if "max_tokens" in message else None
        return ApiError(400, message, code="context_length_exceeded", param=param)
    if error.code == "E_DEVICE":
        return ApiError(503, message, code="device_lost")
    if error.code == "E_REQUEST":
        return ApiError(400, message, code="invalid_value")
    code = {"E_DRAINING": "draining", "E_TENANT": "rate_limit_exceeded"}.get(error.code, "overloaded")
    return ApiError(429, message, code=code, retry_after_s=error.retry_after_s or 1)
