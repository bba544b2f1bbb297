"""The span of an HTTP request; what runs for it has it as its parent."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING

from aiohttp import web
from aiohttp.typedefs import Middleware

from lmserve.edge.keyring import KEYRING, OWNER
from lmserve.edge.middlewares import REQUEST_ID, Handler, path_of
from lmserve.tracing.tracing import Tracing

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span

# Of the request that is being handled; None: what begins now begins a trace.
PARENT: ContextVar[Context | None] = ContextVar("trace_parent", default=None)

_UNTRACED = ("/health", "/metrics")  # asked for all the time, by machines


def make_middleware(tracing: Tracing) -> Middleware:
    """Inside `request_id`. A client's `traceparent` is taken up."""
    from opentelemetry.trace import SpanKind, set_span_in_context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    propagator = TraceContextTextMapPropagator()

    @web.middleware
    async def traced(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path in _UNTRACED:
            return await handler(request)
        resource = request.match_info.route.resource
        route = None if resource is None else resource.canonical
        span = tracing.tracer.start_span(
            request.method if route is None else f"{request.method} {route}",
            propagator.extract(request.headers),
            SpanKind.SERVER,
            _attributes(request, route),
        )
        before = PARENT.set(set_span_in_context(span))
        status: int | None = None
        try:
            response = await handler(request)
            status = response.status
            return response
        finally:
            PARENT.reset(before)
            _end(span, request, status)

    return traced


def _attributes(request: web.Request, route: str | None) -> dict[str, str]:
    attributes = {
        "http.request.method": request.method,
        "url.path": path_of(request),
        "url.scheme": request.scheme,
        "lmserve.request_id": request[REQUEST_ID],
    }
    return attributes if route is None else attributes | {"http.route": route}


def _end(span: Span, request: web.Request, status: int | None) -> None:
    """`status` None: the client left before its answer."""
    from opentelemetry.trace import StatusCode

    if owner := request.get(OWNER):
        span.set_attribute("lmserve.key", request.app[KEYRING].name_of(owner))
    if status is not None:
        span.set_attribute("http.response.status_code", status)
    if status is None or status >= 500:
        span.set_attribute("error.type", "gone" if status is None else str(status))
        span.set_status(StatusCode.ERROR)
    span.end()
