"""What every request passes: its id, who is told of its end, and the one place that answers
errors."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from uuid import uuid4

from aiohttp import HttpVersion11, hdrs, web

from lmserve import logs
from lmserve.edge.refusal import SERVER
from lmserve.errors import (
    BodyTooLarge,
    LmserveError,
    MethodNotAllowed,
    NotFound,
    RequestError,
    Unauthorized,
)
from lmserve.protocol.errors import error_body

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
ErrorBody = Callable[[LmserveError, str], bytes]  # given the request's id
# told of each request that ended: its status (None: the client left before) and how long it took
Ended = Callable[[web.Request, int | None, float], None]

REQUEST_ID = web.RequestKey("request_id", str)
ENDED = web.AppKey("ended", tuple[Ended, ...])
HAS_INDEX = web.AppKey("has_index", bool)  # GET / lists what there is
# of the paths where errors are told in the words of another API than OpenAI's
ERROR_BODIES = web.AppKey("error_bodies", Mapping[str, ErrorBody])
_SANE_ID = re.compile(r"[\x21-\x7e]{1,128}")

logger = logging.getLogger(__name__)


@web.middleware
async def request_id(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Takes the client's id where it is sane, else makes one: every line that is logged on the
    way has it. Tells how the request ended, when its answer is written: aiohttp would write it
    after all middlewares, and finds that done."""
    given = request.headers.get("X-Request-Id", "")
    request[REQUEST_ID] = id = given if _SANE_ID.fullmatch(given) else uuid4().hex
    logged = logs.REQUEST_ID.set(id)
    started = time.perf_counter()
    status = None  # the client left before its end
    try:
        response = await handler(request)
        await response.prepare(request)
        await response.write_eof()
        status = response.status
        return response
    finally:
        for told in request.app.get(ENDED, ()):
            told(request, status, time.perf_counter() - started)
        logs.REQUEST_ID.reset(logged)  # the connection's task goes on


async def stamp(request: web.Request, response: web.StreamResponse) -> None:
    """Signal: every response carries the request's id."""
    if REQUEST_ID in request:
        for name in ("X-Request-Id", "request-id"):  # the latter is Anthropic's
            response.headers[name] = request[REQUEST_ID]
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers[hdrs.SERVER] = SERVER
    if request.version < HttpVersion11 and response.content_length is None:
        response.force_close()  # the answer's end; aiohttp would keep the connection, and no end


async def no_expect(request: web.Request) -> None:
    """For `Expect`, aiohttp asks this before any middleware: `expect` answers, after the key."""


@web.middleware
async def expect(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Tells a client that waits with its body to go on; innermost, so that only what may run
    is asked for. Other expectations are ignored, as they may be."""
    waits = request.headers.get(hdrs.EXPECT, "").lower() == "100-continue"
    if waits and request.version >= HttpVersion11 and request.match_info.http_exception is None:
        assert request.transport is not None
        request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    return await handler(request)


def path_of(request: web.Request) -> str:
    """As it was sent, percent-encoded: no line break of a client's gets into a log."""
    return request.rel_url.raw_path[:200]


@web.middleware
async def errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Exceptions to answers."""
    try:
        return await handler(request)
    except LmserveError as error:
        return error_response(request, error)
    except web.HTTPMethodNotAllowed as error:
        return _method(request, error)
    except web.HTTPException as error:
        if error.status < 400:
            raise
        return error_response(request, _of_aiohttp(request, error))
    except (asyncio.CancelledError, ConnectionResetError):
        raise  # nobody is left to answer
    except Exception:
        return error_response(request, bug(request))


def bug(request: web.Request) -> LmserveError:
    """Logs the exception being handled and gives what the client may know of it."""
    logger.exception("request %s failed", request[REQUEST_ID])
    return LmserveError(f"internal error; the log has it as request {request[REQUEST_ID]}")


def error_response(request: web.Request, error: LmserveError) -> web.Response:
    tell = request.app.get(ERROR_BODIES, {}).get(request.path)
    body = error_body(error) if tell is None else tell(error, request[REQUEST_ID])
    response = web.Response(status=error.status, body=body, content_type="application/json")
    if isinstance(error, Unauthorized):
        response.headers[hdrs.WWW_AUTHENTICATE] = "Bearer"
    retry_after_s = getattr(error, "retry_after_s", None)
    if retry_after_s is not None:
        response.headers["Retry-After"] = str(retry_after_s)
    return response


def _method(request: web.Request, error: web.HTTPMethodNotAllowed) -> web.Response:
    allowed = ", ".join(sorted(error.allowed_methods))
    if request.method == "OPTIONS":
        response = web.Response(status=204)
    else:
        message = f"{request.method} is not allowed for {path_of(request)}: use {allowed}"
        response = error_response(request, MethodNotAllowed(message))
    response.headers["Allow"] = f"{allowed}, OPTIONS"
    return response


def _of_aiohttp(request: web.Request, error: web.HTTPException) -> LmserveError:
    if isinstance(error, web.HTTPNotFound):
        hint = ": GET / lists what there is" if request.app.get(HAS_INDEX) else ""
        return NotFound(f"there is no {path_of(request)}{hint}")
    if isinstance(error, web.HTTPRequestEntityTooLarge):
        return BodyTooLarge(f"the body is over the limit: {error.text}")
    if error.status < 500:
        return RequestError(error.reason)
    return LmserveError(error.reason)
