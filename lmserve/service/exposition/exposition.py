"""`/metrics`: all that is counted, put together when somebody scrapes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from lmserve.bridge.handle import EngineHandle
from lmserve.service.exposition import engine, requests
from lmserve.service.exposition.families import Families
from lmserve.service.exposition.process import Processes
from lmserve.service.metrics import Metrics
from lmserve.settings import Settings

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Source = Callable[[Families], Iterable[Metric]]


class Exposition:
    """Lives on the server's loop. Requests and the engine are told always, `sources` add to it."""

    def __init__(self, metrics: Metrics, handle: EngineHandle, settings: Settings):
        self.sources: list[Source] = []
        self._metrics = metrics
        self._handle = handle
        self._settings = settings
        self._began_s = time.monotonic()
        self._processes = Processes(lambda: handle.info)

    async def render(self) -> bytes:
        """Read here, where it is counted; written in a thread."""
        families = list(self.families())
        return await asyncio.to_thread(lambda: _written(families) + self._processes.render())

    def render_counts(self) -> bytes:
        """All but what the system tells of the processes."""
        return _written(list(self.families()))

    def families(self) -> Iterator[Metric]:
        metrics, info = self._metrics, self._handle.info
        if info is not None:
            metrics.engine_started(info)
        f = Families(metrics.model)
        yield from engine.families(
            f, self._handle, self._settings, metrics.engine, metrics.engine_restarts
        )
        yield from requests.families(f, metrics)
        up_s = time.monotonic() - self._began_s
        yield f.gauge("lmserve:uptime_seconds", "Since the server was started", up_s)
        for source in self.sources:
            yield from source(f)


def _written(families: list[Metric]) -> bytes:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collected(families))
    return generate_latest(registry)


class _Collected(Collector):
    def __init__(self, families: list[Metric]):
        self._families = families

    def describe(self) -> Iterator[Metric]:
        return iter(())

    def collect(self) -> Iterator[Metric]:
        return iter(self._families)
