"""The wire form of errors: OpenAI's nested object, and LMDeploy's flat keys beside it."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from lmserve.errors import LmserveError


class ErrorDetail(Struct, kw_only=True):
    """OpenAI's error object."""

    message: Annotated[str, Meta(description="What is wrong and what to do.")]
    type: str
    param: Annotated[str | None, Meta(description="The field at fault.")]
    code: str | None


class ErrorResponse(Struct, kw_only=True):
    """The body of every answer that is not 2xx."""

    error: ErrorDetail
    object: Literal["error"] = "error"
    message: str
    type: str
    param: str | None
    code: Annotated[int, Meta(description="The HTTP status.")]


class ErrorEvent(Struct, kw_only=True):
    """What a stream sends when it fails after it began."""

    error: ErrorDetail


def error_detail(error: LmserveError) -> ErrorDetail:
    return ErrorDetail(message=error.message, type=error.type, param=error.param, code=error.code)


def error_body(error: LmserveError) -> bytes:
    """The JSON body that tells this error."""
    detail = error_detail(error)
    return msgspec.json.encode(
        ErrorResponse(
            error=detail,
            message=detail.message,
            type=detail.type,
            param=detail.param,
            code=error.status,
        )
    )


def error_event(error: LmserveError) -> bytes:
    """The server-sent event that tells this error."""
    return b"data: " + msgspec.json.encode(ErrorEvent(error=error_detail(error))) + b"\n\n"
