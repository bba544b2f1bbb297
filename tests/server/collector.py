"""An OpenTelemetry collector of a test's own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span

__all__ = ["Collector", "Span", "attributes", "collecting"]


class Collector:
    def __init__(self) -> None:
        self.endpoint = ""
        self.spans: list[Span] = []
        self.resource: dict[str, Any] = {}
        self._came = asyncio.Event()

    async def take(self, request: web.Request) -> web.Response:
        asked = ExportTraceServiceRequest.FromString(await request.read())
        for told in asked.resource_spans:
            self.resource = _values(told.resource.attributes)
            for scope in told.scope_spans:
                self.spans += scope.spans
        self._came.set()
        return web.Response(
            body=ExportTraceServiceResponse().SerializeToString(),
            content_type="application/x-protobuf",
        )

    async def named(self, name: str, num: int = 1) -> list[Span]:
        """So many spans of this name, once they have come."""
        while len(found := [span for span in self.spans if span.name == name]) < num:
            self._came.clear()
            await self._came.wait()
        return found

    def children(self, span: Span) -> dict[str, Span]:
        return {each.name: each for each in self.spans if each.parent_span_id == span.span_id}


@asynccontextmanager
async def collecting() -> AsyncIterator[Collector]:
    collector = Collector()
    app = web.Application()
    app.router.add_post("/v1/traces", collector.take)
    async with TestServer(app) as server:
        collector.endpoint = str(server.make_url("")).rstrip("/")
        yield collector


def attributes(span: Span) -> dict[str, Any]:
    return _values(span.attributes)


def _values(pairs: Any) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(each) for each in value.array_value.values]
    return getattr(value, kind)
