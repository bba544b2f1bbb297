"""Families of metrics in the form that Prometheus reads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from lmserve.service.histogram import Histogram

MODEL = "model_name"


class Families:
    """Makes them; each sample names the model that is served."""

    def __init__(self, model: str):
        self._model = model

    def gauge(self, name: str, doc: str, value: float | None) -> Metric:
        """None: there is no such thing, and no sample."""
        family = GaugeMetricFamily(name, doc, labels=[MODEL])
        if value is not None:
            family.add_metric([self._model], value)
        return family

    def gauges(self, name: str, doc: str, label: str, values: Mapping[Any, float]) -> Metric:
        """One sample a key, which is the label's value."""
        family = GaugeMetricFamily(name, doc, labels=[MODEL, label])
        for key, value in values.items():
            family.add_metric([self._model, key], value)
        return family

    def info(self, name: str, doc: str, labels: Mapping[str, str]) -> Metric:
        """A gauge that is always 1 and tells its labels."""
        family = GaugeMetricFamily(name, doc, labels=[MODEL, *labels])
        family.add_metric([self._model, *labels.values()], 1)
        return family

    def counter(self, name: str, doc: str, value: float) -> Metric:
        family = CounterMetricFamily(name, doc, labels=[MODEL])
        family.add_metric([self._model], value)
        return family

    def counters(self, name: str, doc: str, label: str, values: Mapping[Any, float]) -> Metric:
        return self.counters_by(name, doc, [label], (([k], v) for k, v in values.items()))

    def counters_by(
        self, name: str, doc: str, labels: list[str], values: Iterable[tuple[list[str], float]]
    ) -> Metric:
        family = CounterMetricFamily(name, doc, labels=[MODEL, *labels])
        for own, value in values:
            family.add_metric([self._model, *own], value)
        return family

    def histogram(self, name: str, doc: str, histogram: Histogram) -> Metric:
        family = HistogramMetricFamily(name, doc, labels=[MODEL])
        family.add_metric([self._model], histogram.buckets(), histogram.sum)
        return family

    def histograms(
        self, name: str, doc: str, label: str, values: Mapping[str, Histogram]
    ) -> Metric:
        family = HistogramMetricFamily(name, doc, labels=[MODEL, label])
        for key, histogram in values.items():
            family.add_metric([self._model, key], histogram.buckets(), histogram.sum)
        return family
