"""The wire form of errors on Anthropic's routes."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from lmserve.errors import LmserveError
from lmserve.protocol.anthropic.events import event_bytes

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    409: "conflict_error",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


class AnthropicError(Struct, kw_only=True):
    type: str
    message: Annotated[str, Meta(description="What is wrong and what to do.")]


class AnthropicErrorResponse(Struct, kw_only=True):
    """The body of every answer that is not 2xx; in a stream, the event `error`."""

    type: Literal["error"] = "error"
    error: AnthropicError
    request_id: Annotated[
        str, Meta(description="That of the headers `request-id`, `X-Request-Id`.")
    ]


def error_body(error: LmserveError, request_id: str) -> bytes:
    """The JSON body that tells this error."""
    other = "invalid_request_error" if error.status < 500 else "api_error"
    told = AnthropicError(type=_TYPES.get(error.status, other), message=error.message)
    return msgspec.json.encode(AnthropicErrorResponse(error=told, request_id=request_id))


def error_event(error: LmserveError, request_id: str) -> bytes:
    """The event that tells this error, and ends the stream."""
    return event_bytes("error", error_body(error, request_id))
