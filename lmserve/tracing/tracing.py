"""Traces of requests, sent to an OpenTelemetry collector by a thread with a bounded queue.

Needs the extra `otel`; nothing else of lmserve imports OpenTelemetry. A collector that is not
there costs its spans and one line in the log.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from lmserve import __version__
from lmserve.errors import SetupError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
    from opentelemetry.trace import Tracer

EXPORT_TIMEOUT_S = 5.0  # a batch that takes longer is lost
CLOSE_S = 2.0  # at the end, what is left gets this long

logger = logging.getLogger(__name__)


def check() -> None:
    """Raises SetupError where the extra is missing."""
    try:
        import opentelemetry.exporter.otlp.proto.http.trace_exporter
        import opentelemetry.sdk.trace.export  # noqa: F401
    except ImportError as error:
        raise SetupError(
            f"--otlp-traces-endpoint needs OpenTelemetry ({error.name} is missing): "
            "pip install 'lmserve[otel]'"
        ) from None


class Tracing:
    """Spans of one server, from `open` to `close`."""

    tracer: Tracer

    def __init__(self, endpoint: str):
        """Raises SetupError. `endpoint` without a path gets OTLP's own."""
        check()
        url = (
            endpoint if urlsplit(endpoint).path.strip("/") else endpoint.rstrip("/") + "/v1/traces"
        )
        self._url = url

    async def open(self) -> None:
        made = await asyncio.to_thread(_make_provider, self._url)
        self._stop_exporting, self._provider = made
        self.tracer = self._provider.get_tracer("lmserve", __version__)

    async def close(self) -> None:
        """Sends what is left, but not for long."""
        timer = threading.Timer(CLOSE_S, self._stop_exporting)
        timer.start()
        await asyncio.to_thread(self._provider.shutdown)
        timer.cancel()


def _make_provider(url: str) -> tuple[Callable[[], None], TracerProvider]:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    # each failure has its line below; theirs come with every batch
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
    exporter = OTLPSpanExporter(endpoint=url, timeout=EXPORT_TIMEOUT_S)
    resource = Resource.create({"service.name": "lmserve", "service.version": __version__})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(_told_once(exporter, url)))
    return exporter.shutdown, provider


def _told_once(exporter: SpanExporter, url: str) -> SpanExporter:
    """As this one; of a collector that is away one line is logged, and one when it is back."""
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

    class ToldOnce(SpanExporter):
        _works = True

        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            result = exporter.export(spans)
            works = result is SpanExportResult.SUCCESS
            if self._works and not works:
                logger.warning(
                    "traces cannot be sent to %s: they are lost until they can (told once)", url
                )
            elif works and not self._works:
                logger.warning("traces are sent to %s again", url)
            self._works = works
            return result

        def shutdown(self) -> None:
            exporter.shutdown()

    return ToldOnce()


class WallClock:
    """Moments of a clock that only runs on, as nanoseconds since 1970."""

    def __init__(self, now_s: float):
        self._offset_ns = time.time_ns() - int(now_s * 1e9)

    def __call__(self, moment_s: float) -> int:
        return self._offset_ns + int(moment_s * 1e9)
