"""Errors that no handler tells: what came was no request, came too slowly, or came to a server
that has no room for another connection."""

from __future__ import annotations

from http import HTTPStatus
from uuid import uuid4

from aiohttp.http_exceptions import (
    BadHttpMethod,
    ContentLengthError,
    HttpProcessingError,
    LineTooLong,
    TransferEncodingError,
)

from lmserve.errors import HeadTooLarge, LmserveError, RequestError, TooManyConnections
from lmserve.protocol.errors import error_body

MAX_LINE_BYTES = 8190  # the request's line, or one header
MAX_HEADERS = 128
MAX_HEAD_BYTES = 64 * 1024
RETRY_AFTER_S = 2
SERVER = "lmserve"  # no versions: they would tell what may be tried


def told(error: BaseException | None, status: int) -> LmserveError:
    """What a client is told of it: nothing of what it sent, and nothing of the server."""
    if isinstance(error, LineTooLong):
        return HeadTooLarge(
            f"a line of the request's head is over {MAX_LINE_BYTES} bytes: send a shorter URL, or "
            "shorter headers"
        )
    if isinstance(error, HttpProcessingError) and error.message.startswith("Too many headers"):
        return HeadTooLarge(f"the request has over {MAX_HEADERS} headers: send fewer")
    if isinstance(error, TransferEncodingError | ContentLengthError):
        return RequestError("the body is badly framed: send it again")
    if isinstance(error, BadHttpMethod) and "HTTPS" in error.message:
        return RequestError("this port speaks plain HTTP: use http:// in place of https://")
    if isinstance(error, HttpProcessingError) or status < 500:
        return RequestError(
            "this is not valid HTTP/1.1: check the request's line, its headers, and how its body "
            "is framed"
        )
    return LmserveError("internal error; the log has more")


def head_too_large() -> HeadTooLarge:
    return HeadTooLarge(
        f"the request's head is over {MAX_HEAD_BYTES} bytes: send fewer or shorter headers"
    )


def check_sockets(num_open: int, max_sockets: int) -> None:
    """Before another is upgraded. Raises TooManyConnections."""
    if num_open >= max_sockets:
        raise TooManyConnections(
            f"the server has {num_open} WebSockets, its limit (max_sockets): try again in a "
            "moment, or ask over HTTP",
            retry_after_s=RETRY_AFTER_S,
        )


def too_many(max_connections: int) -> TooManyConnections:
    return TooManyConnections(
        f"the server has {max_connections} connections, its limit (max_connections): try again "
        "in a moment",
        retry_after_s=RETRY_AFTER_S,
    )


def headers_of(error: LmserveError) -> dict[str, str]:
    """The connection ends with it."""
    id = uuid4().hex
    headers = {"X-Request-Id": id, "request-id": id, "X-Content-Type-Options": "nosniff"}
    headers["Server"] = SERVER
    retry_after_s = getattr(error, "retry_after_s", None)
    if retry_after_s is not None:
        headers["Retry-After"] = str(retry_after_s)
    return headers | {"Connection": "close"}


def as_bytes(error: LmserveError) -> bytes:
    """The whole answer."""
    body = error_body(error)
    headers = headers_of(error) | {
        "Content-Type": "application/json; charset=utf-8",
        "Content-Length": str(len(body)),
    }
    lines = [f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join((*lines, "", "")).encode() + body
