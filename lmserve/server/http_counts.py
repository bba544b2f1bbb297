"""HTTP requests, counted by how they were answered."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from aiohttp import hdrs, web
from prometheus_client.metrics_core import Metric

from lmserve.edge.connections import Connections
from lmserve.edge.tls import Certificate
from lmserve.service.exposition.families import Families
from lmserve.service.histogram import Histogram

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
_NO_ROUTE = "none"
_OTHER = "other"


def connection_families(
    server: web.Server | None, certificate: Certificate | None, f: Families
) -> Iterator[Metric]:
    assert isinstance(server, Connections), "it is set up"
    yield f.gauge("lmserve:connections", "Connections that are open", len(server.open))
    yield f.counter(
        "lmserve:connections_refused",
        "Connections told that there are too many",
        server.num_refused,
    )
    yield f.gauge(
        "lmserve:certificate_expires_seconds",
        "When the certificate that is shown expires, since unix epoch in seconds",
        None if certificate is None else certificate.expires_s,
    )


class HttpCounts:
    """By the route's template, never by what a client wrote."""

    def __init__(self) -> None:
        self._answers: Counter[tuple[str, str, str]] = Counter()
        self._durations: dict[str, Histogram] = {}

    def ended(self, request: web.Request, status: int | None, duration_s: float) -> None:
        """`status` None: the client left before its answer."""
        resource = request.match_info.route.resource
        route = _NO_ROUTE if resource is None else resource.canonical
        method = request.method if request.method in hdrs.METH_ALL else _OTHER
        self._answers[method, route, str(status or "gone")] += 1
        if status == 101:  # a WebSocket lasts as long as its client likes
            return
        histogram = self._durations.get(route)
        if histogram is None:
            histogram = self._durations[route] = Histogram(_SECONDS)
        histogram.add(duration_s)

    def families(self, f: Families) -> Iterator[Metric]:
        yield f.counters_by(
            "lmserve:http_requests",
            "HTTP requests by how they were answered; `gone`: the client left before",
            ["method", "route", "status"],
            ((list(labels), num) for labels, num in self._answers.items()),
        )
        yield f.histograms(
            "lmserve:http_request_duration_seconds",
            "From the head of a request to the end of its answer, but for WebSockets",
            "route",
            self._durations,
        )
