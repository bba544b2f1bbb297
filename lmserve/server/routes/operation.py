"""GET /health, /metrics, /version and /openapi.json: for those who run the server."""

from __future__ import annotations

import asyncio

import msgspec
from aiohttp import web

from lmserve import __version__
from lmserve.protocol.health import HealthResponse, VersionResponse
from lmserve.protocol.openapi import Operation
from lmserve.server.keys import EXPOSITION, HANDLE, OPENAPI, SERVICE, SESSIONS
from lmserve.server.routes.route import Route, json_response
from lmserve.service.exposition.exposition import CONTENT_TYPE


async def health(request: web.Request) -> web.Response:
    seen, service = request.app[HANDLE].health(), request.app[SERVICE]
    node, left_s = request.app[SESSIONS].ids.node, service.draining.seconds_left
    if left_s is None:
        body = HealthResponse.of(seen.state, seen.reason, seen.heard_s, node)
    else:
        body = HealthResponse.of("draining", str(service.draining), seen.heard_s, node)
        body.requests_left, body.seconds_left = service.inflight, round(left_s, 1)
    return json_response(msgspec.json.encode(body), body.http_status)


async def metrics(request: web.Request) -> web.Response:
    body = await request.app[EXPOSITION].render()
    return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE})


async def version(request: web.Request) -> web.Response:
    return json_response(msgspec.json.encode(VersionResponse(version=__version__)))


async def openapi(request: web.Request) -> web.Response:
    return json_response(await asyncio.to_thread(request.app[OPENAPI].encoded))


ROUTES = [
    Route(
        "GET",
        "/health",
        health,
        Operation(
            id="health",
            summary="Whether the engine answers",
            tag="operation",
            description="200 when the engine's loop answered lately and no step is stuck, and "
            "when it was put to sleep. 503 while the server drains, so that nothing new is sent.",
            response=HealthResponse,
            statuses=(503,),
            failure=HealthResponse,
        ),
        open=True,
    ),
    Route(
        "GET",
        "/metrics",
        metrics,
        Operation(
            id="metrics",
            summary="Prometheus metrics, under vLLM's names",
            tag="operation",
        ),
        scope="metrics",
        part="metrics",
    ),
    Route(
        "GET",
        "/version",
        version,
        Operation(
            id="version",
            summary="lmserve's version",
            tag="operation",
            response=VersionResponse,
        ),
    ),
    Route(
        "GET",
        "/openapi.json",
        openapi,
        Operation(
            id="openapi",
            summary="This document",
            tag="operation",
            content_type="application/json",
        ),
        part="docs",
    ),
]
