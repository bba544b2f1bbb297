"""What is told of the two processes: under prometheus_client's usual names the server's, and the
engine's under the same with `lmserve_engine_` before them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import Metric

from lmserve.messages import EngineInfo
from lmserve.service.exposition.families import Families
from lmserve.service.loop_lag import LoopLag

_NO_PROCESS = "none"  # has no /proc/none


class Processes:
    """Reads files of /proc: not for the loop."""

    def __init__(self, engine: Callable[[], EngineInfo | None]):
        self._engine = engine
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        ProcessCollector("lmserve_engine", self._engine_pid, registry=self._registry)
        PlatformCollector(registry=self._registry)
        GCCollector(registry=self._registry)

    def render(self) -> bytes:
        return generate_latest(self._registry)

    def _engine_pid(self) -> int | str:
        """Where the engine has a process of its own, and lives."""
        info = self._engine()
        return _NO_PROCESS if info is None or info.pid == os.getpid() else info.pid


def loop_families(f: Families, lag: LoopLag) -> Iterator[Metric]:
    yield f.gauge("lmserve:tasks", "Tasks of the server's event loop", len(asyncio.all_tasks()))
    yield f.histogram(
        "lmserve:loop_lag_seconds", "How late the event loop comes to a timer", lag.histogram
    )
