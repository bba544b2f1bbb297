"""GET /terminate, POST /abort_request, /sleep, /wakeup, GET /is_sleeping: LMDeploy's."""

from __future__ import annotations

import logging
import os
import signal

import msgspec
from aiohttp import web

from lmserve.edge.keyring import OWNER
from lmserve.errors import InvalidField, NotEnabled, NotServed
from lmserve.protocol.control import (
    SLEEP_LEVELS,
    WAKE_TAGS,
    AbortRequest,
    SleepingResponse,
    check_level,
    check_tags,
)
from lmserve.protocol.openapi import Operation, Query
from lmserve.server import body
from lmserve.server.keys import HANDLE, SERVICE, SETTINGS, WARMTH
from lmserve.server.routes.route import Route, json_response

logger = logging.getLogger(__name__)


async def sleep(request: web.Request) -> web.Response:
    check_level(request.query.get("level", "1"))
    handle = request.app[HANDLE]
    if handle.health().ok:
        await request.app[WARMTH].write_all()
    await handle.sleep()
    return web.Response()


async def wakeup(request: web.Request) -> web.Response:
    check_tags(request.query.getall("tags", []))
    await request.app[HANDLE].wake()
    return web.Response()


async def is_sleeping(request: web.Request) -> web.Response:
    asleep = request.app[HANDLE].health().state == "sleeping"
    return json_response(msgspec.json.encode(SleepingResponse(is_sleeping=asleep)))


async def abort_request(request: web.Request) -> web.Response:
    settings, service = request.app[SETTINGS].server, request.app[SERVICE]
    if not settings.enable_abort_handling:
        raise NotServed("this server aborts no answers: start it with --enable-abort-handling")
    async with body.reading(request, AbortRequest) as asked:
        session_id = asked.target()
    owner = request[OWNER]
    if session_id is None:
        service.abort_all(owner)
    elif not service.abort_session(owner, session_id):
        raise InvalidField(
            f"no answer with session_id {session_id} is running or waiting", param="session_id"
        )
    return web.Response()


async def terminate(request: web.Request) -> web.StreamResponse:
    """Answers first, then stops as a service manager would have it stop."""
    settings = request.app[SETTINGS].server
    if not settings.allow_terminate_by_client:
        raise NotEnabled(
            "this server is not ended by its clients: start it with --allow-terminate-by-client"
        )
    logger.warning("a client ends the server")
    response = web.Response()
    response.force_close()
    await response.prepare(request)
    await response.write_eof()
    os.kill(os.getpid(), signal.SIGTERM)
    return response


ROUTES = [
    Route(
        "POST",
        "/sleep",
        sleep,
        Operation(
            id="sleep",
            summary="Stop the engine and give its memory back",
            tag="operation",
            description="Open answers end with `abort`. Both levels end the engine's process "
            "here: weights and KV cache are gone, and come back with `POST /wakeup`.",
            query=(Query("level", "1 and 2 are the same here.", SLEEP_LEVELS, default="1"),),
            content_type="",
            statuses=(400, 503),
        ),
        scope="admin",
    ),
    Route(
        "POST",
        "/wakeup",
        wakeup,
        Operation(
            id="wakeup",
            summary="Start a sleeping engine again",
            tag="operation",
            description="Answers when the engine is ready.",
            query=(
                Query(
                    "tags",
                    "What to wake; here it is always all. Default: all.",
                    WAKE_TAGS,
                    several=True,
                ),
            ),
            content_type="",
            statuses=(400, 503),
        ),
        scope="admin",
    ),
    Route(
        "GET",
        "/is_sleeping",
        is_sleeping,
        Operation(
            id="is_sleeping",
            summary="Whether the engine sleeps",
            tag="operation",
            response=SleepingResponse,
        ),
        scope="admin",
    ),
    Route(
        "POST",
        "/abort_request",
        abort_request,
        Operation(
            id="abort_request",
            summary="End answers",
            tag="operation",
            description="Needs `--enable-abort-handling`. The answers end with `abort`.",
            request=AbortRequest,
            example={"session_id": 1},
            content_type="",
            statuses=(400, 413, 429, 501),
        ),
    ),
    Route(
        "GET",
        "/terminate",
        terminate,
        Operation(
            id="terminate",
            summary="End the server",
            tag="operation",
            description="Needs `--allow-terminate-by-client`. Running answers may finish.",
            content_type="",
            statuses=(400, 403),
        ),
        scope="admin",
        acts=True,
    ),
]
