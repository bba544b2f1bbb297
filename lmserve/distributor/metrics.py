"""What the distributor's own `/metrics` says."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from lmserve.distributor.nodes import Nodes

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.01, 0.05, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


class Metrics:
    def __init__(self, nodes: Nodes):
        self._nodes = nodes
        self._registry = CollectorRegistry()
        label = ("node",)
        self.requests = Counter(
            "lmserve_proxy_requests", "requests sent to the node", label, registry=self._registry
        )
        self.failures = Counter(
            "lmserve_proxy_failures", "of them, lost with the node", label, registry=self._registry
        )
        self.retries = Counter(
            "lmserve_proxy_retries", "of those, sent to another", label, registry=self._registry
        )
        self.latency = Histogram(
            "lmserve_proxy_request_seconds",
            "from sending a request to the end of its answer",
            label,
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._unfinished = Gauge(
            "lmserve_proxy_unfinished", "requests being answered", label, registry=self._registry
        )
        self._alive = Gauge(
            "lmserve_proxy_node_alive", "1 while it gets requests", label, registry=self._registry
        )

    def render(self) -> bytes:
        known = {node.url for node in self._nodes}
        for family in (self.requests, self.failures, self.retries, self.latency):
            for url in _labelled(family) - known:  # however it went
                family.remove(url)
        for gauge in (self._unfinished, self._alive):
            gauge.clear()
        for node in self._nodes:
            self._unfinished.labels(node.url).set(node.unfinished)
            self._alive.labels(node.url).set(int(node.alive))
        return generate_latest(self._registry)


def _labelled(family: Counter | Histogram) -> set[str]:
    return {sample.labels["node"] for metric in family.collect() for sample in metric.samples}
