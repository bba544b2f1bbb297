"""What `/metrics` says, under the names that vLLM's dashboards read.

Counting is plain integers on the loop; a step costs a comparison and a few additions. Names,
labels and the engine's statistics are put together only when somebody scrapes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from lmserve.bridge.handle import EngineHandle
from lmserve.messages import EngineInfo, EngineStats
from lmserve.service.catalog import model_name
from lmserve.service.histogram import Histogram
from lmserve.settings import Settings
from lmserve.types import FinishReason, Usage

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

MAX_UNKNOWN_FIELDS = 100  # names kept apart; clients choose them
_MAX_FIELD_CHARS = 64
_OTHER = "other"

_REASONS: tuple[FinishReason, ...] = ("stop", "length", "tool_calls", "abort", "error")
_SECONDS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5,
            10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0)  # fmt: skip
_GAPS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0,
         2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0)  # fmt: skip
_LATENCIES = (0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0,
              120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0)  # fmt: skip
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000,
           200_000)  # fmt: skip
_STEP_TOKENS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """One request that ended, as the service tells it."""

    finish_reason: FinishReason
    usage: Usage
    max_tokens: int
    e2e_s: float  # from the request's arrival
    ttft_s: float | None  # from its arrival; None where no token came
    decode_s: float  # from the first token to the last
    queue_s: float | None  # from its submission to its first step; None where no token came
    prefill_s: float  # from there to the first token


class Metrics:
    """Used on the server's loop only."""

    def __init__(self, handle: EngineHandle, settings: Settings):
        self._handle = handle
        self._settings = settings
        self._registry = CollectorRegistry()
        self._registry.register(_Collector(self))
        handle.on_step = self._on_step
        self._num_steps = 0  # of the engine, seen
        self._engine: EngineInfo | None = None  # the one that serves, or served last
        self.engine_restarts = 0
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self.generation_tokens = 0
        self.finished: dict[FinishReason, int] = dict.fromkeys(_REASONS, 0)
        self.rejections: dict[str, int] = {"requests": 0, "tokens": 0, "bytes": 0}
        self.unknown_fields: Counter[str] = Counter()
        self.num_sockets = 0  # open
        self.socket_events: Counter[str] = Counter()  # that clients sent, by type
        self.kv_tokens_pinned = 0  # of conversations
        self.kv_bytes_spilled = 0
        self.kv_saves = 0
        self.kv_restores: dict[str, int] = dict.fromkeys(("hit", "miss", "refused", "late"), 0)
        self.batch_lines_running: Counter[str] = Counter()  # by endpoint
        self.batch_lines: dict[str, int] = {"completed": 0, "failed": 0}
        self.ttft = Histogram(_SECONDS)
        self.inter_token = Histogram(_GAPS)
        self.time_per_token = Histogram(_GAPS)
        self.e2e = Histogram(_LATENCIES)
        self.decode = Histogram(_LATENCIES)
        self.queue = Histogram(_LATENCIES)
        self.prefill = Histogram(_LATENCIES)
        self.inference = Histogram(_LATENCIES)
        self.prompt_sizes = Histogram(_TOKENS)
        self.generation_sizes = Histogram(_TOKENS)
        self.most_tokens = Histogram(_TOKENS)
        self.max_tokens = Histogram(_TOKENS)
        self.num_choices = Histogram((1, 2, 5, 10, 20))
        self.step_tokens = Histogram(_STEP_TOKENS)

    # --- told by the service and the routes -------------------------------------------

    def tokens(self, num_tokens: int, gap_s: float | None) -> None:
        """A delivery to one request, `gap_s` after the one before it."""
        self.generation_tokens += num_tokens
        if gap_s is not None:
            self.inter_token.add(gap_s / num_tokens, num_tokens)

    def prompt_done(self, num_tokens: int, num_cached: int) -> None:
        """A request has its first token."""
        self.prompt_tokens += num_tokens
        self.cached_tokens += num_cached

    def _on_step(self, stats: EngineStats) -> None:
        if stats.steps != self._num_steps:  # else it only tells of an abort or the like
            self._num_steps = stats.steps
            self.step_tokens.add(stats.step_tokens)

    def request_finished(self, record: RequestRecord) -> None:
        usage = record.usage
        self.finished[record.finish_reason] += 1
        self.e2e.add(record.e2e_s)
        self.prompt_sizes.add(usage.prompt_tokens)
        self.generation_sizes.add(usage.completion_tokens)
        self.max_tokens.add(record.max_tokens)
        if record.ttft_s is not None:
            self.ttft.add(record.ttft_s)
            self.decode.add(record.decode_s)
        if record.queue_s is not None:
            self.queue.add(record.queue_s)
            self.prefill.add(record.prefill_s)
            self.inference.add(record.prefill_s + record.decode_s)
        if usage.completion_tokens > 1:
            self.time_per_token.add(record.decode_s / (usage.completion_tokens - 1))

    def choices_finished(self, num: int, most_tokens: int) -> None:
        """All answers to one prompt have ended; the longest has so many tokens."""
        self.num_choices.add(num)
        self.most_tokens.add(most_tokens)

    def rejected(self, limit: str) -> None:
        """A 429 for this limit: `requests`, `tokens` or `bytes`."""
        self.rejections[limit] += 1

    def batch_line_ended(self, *, succeeded: bool) -> None:
        """A line of a batch was answered, or refused."""
        self.batch_lines["completed" if succeeded else "failed"] += 1

    def unknown_field(self, name: str) -> bool:
        """Counts a JSON field that no route reads. True the first time: log it then."""
        name = name[:_MAX_FIELD_CHARS]
        if name not in self.unknown_fields and len(self.unknown_fields) >= MAX_UNKNOWN_FIELDS:
            name = _OTHER
        self.unknown_fields[name] += 1
        return self.unknown_fields[name] == 1

    def engine_started(self, info: EngineInfo) -> None:
        """The engine that serves now. It tells its info once, so another one is a restart."""
        if self._engine is not None and self._engine is not info:
            self.engine_restarts += 1
        self._engine = info

    # --- told to Prometheus -----------------------------------------------------------

    def render(self) -> bytes:
        return generate_latest(self._registry)

    def families(self) -> Iterator[Metric]:
        info = self._handle.info
        if info is not None:
            self.engine_started(info)
        model = model_name(self._settings, self._engine) if self._engine is not None else ""
        yield from self._gauges(model)
        yield _gauge("lmserve:websockets", "WebSockets that are open", model, self.num_sockets)
        yield from self._counters(model)
        yield from self._histograms(model)

    def _gauges(self, model: str) -> Iterator[Metric]:
        stats = self._handle.stats if self._handle.info is not None else EngineStats()
        used = stats.blocks_held + stats.blocks_pinned
        yield _gauge("vllm:num_requests_running", "Requests in a step", model, stats.num_running)
        yield _gauge("vllm:num_requests_waiting", "Requests waiting", model, stats.num_waiting)
        yield _gauge(
            "vllm:kv_cache_usage_perc",
            "KV blocks held or pinned, 1 is all of them",
            model,
            used / stats.blocks_total if stats.blocks_total else 0.0,
        )
        waiting = GaugeMetricFamily(
            "vllm:num_requests_waiting_by_reason", "Why they wait", labels=["model_name", "reason"]
        )
        waiting.add_metric([model, "capacity"], stats.num_waiting)
        yield waiting
        blocks = GaugeMetricFamily(
            "lmserve:kv_blocks", "KV blocks by state", labels=["model_name", "state"]
        )
        for state in ("free", "cached", "pinned", "held"):
            blocks.add_metric([model, state], getattr(stats, f"blocks_{state}"))
        yield blocks
        running = GaugeMetricFamily(
            "lmserve:batch_lines_running",
            "Lines of batches being run",
            labels=["model_name", "endpoint"],
        )
        for endpoint, num in self.batch_lines_running.items():
            running.add_metric([model, endpoint], num)
        yield running
        yield _gauge(
            "lmserve:session_kv_tokens_pinned",
            "Tokens of conversations kept in the KV cache",
            model,
            self.kv_tokens_pinned,
        )
        yield _gauge(
            "lmserve:session_kv_disk_bytes", "KV of conversations on disk", model,
            self.kv_bytes_spilled,
        )  # fmt: skip

    def _counters(self, model: str) -> Iterator[Metric]:
        stats = self._handle.stats
        for name, doc, value in (
            ("vllm:prompt_tokens", "Prompt tokens of requests answered", self.prompt_tokens),
            ("vllm:prompt_tokens_cached", "Of these, from the prefix tree", self.cached_tokens),
            ("vllm:generation_tokens", "Tokens generated", self.generation_tokens),
            ("vllm:num_preemptions", "Sequences preempted", stats.preemptions),
            ("vllm:prefix_cache_queries", "Prompt tokens looked up", stats.prefix_queries),
            ("vllm:prefix_cache_hits", "Prompt tokens found", stats.prefix_hits),
            ("lmserve:engine_restarts", "Engines started after the first", self.engine_restarts),
            ("lmserve:session_kv_saves", "Conversations written to disk", self.kv_saves),
        ):
            yield _counter(name, doc, model, value)
        yield _labelled("vllm:request_success", "Requests ended", "finished_reason", model,
                        self.finished)  # fmt: skip
        yield _labelled("vllm:admission_rejections", "Requests refused with 429", "reason", model,
                        self.rejections)  # fmt: skip
        yield _labelled("lmserve:batch_lines", "Lines of batches that ended", "result", model,
                        self.batch_lines)  # fmt: skip
        yield _labelled("lmserve:session_kv_restores", "Reads of them, by how they went", "result",
                        model, self.kv_restores)  # fmt: skip
        yield _labelled("lmserve:websocket_events", "Events that clients sent", "type", model,
                        self.socket_events)  # fmt: skip
        yield _labelled("lmserve:unknown_fields", "JSON fields that were ignored", "field", model,
                        self.unknown_fields)  # fmt: skip

    def _histograms(self, model: str) -> Iterator[Metric]:
        for histogram, name, doc in (
            (self.ttft, "time_to_first_token_seconds", "Arrival to first token"),
            (self.inter_token, "inter_token_latency_seconds", "Between tokens of a request"),
            (self.time_per_token, "request_time_per_output_token_seconds", "Its mean, a request"),
            (self.e2e, "e2e_request_latency_seconds", "Arrival to end"),
            (self.decode, "request_decode_time_seconds", "First token to last"),
            (self.queue, "request_queue_time_seconds", "Submission to the first step"),
            (self.prefill, "request_prefill_time_seconds", "First step to first token"),
            (self.inference, "request_inference_time_seconds", "First step to last token"),
            (self.prompt_sizes, "request_prompt_tokens", "Prompt tokens of a request"),
            (self.generation_sizes, "request_generation_tokens", "Tokens generated, a request"),
            (self.most_tokens, "request_max_num_generation_tokens", "The most, of n answers"),
            (self.max_tokens, "request_params_max_tokens", "max_tokens, cut to what fits"),
            (self.num_choices, "request_params_n", "Answers asked for"),
            (self.step_tokens, "iteration_tokens_total", "Tokens run in a step"),
        ):
            yield histogram.family(f"vllm:{name}", doc, model)


class _Collector(Collector):
    def __init__(self, metrics: Metrics):
        self._metrics = metrics

    def describe(self) -> Iterator[Metric]:
        return iter(())  # registering collects nothing

    def collect(self) -> Iterator[Metric]:
        return self._metrics.families()


def _gauge(name: str, doc: str, model: str, value: float) -> Metric:
    family = GaugeMetricFamily(name, doc, labels=["model_name"])
    family.add_metric([model], value)
    return family


def _counter(name: str, doc: str, model: str, value: float) -> Metric:
    family = CounterMetricFamily(name, doc, labels=["model_name"])
    family.add_metric([model], value)
    return family


def _labelled(name: str, doc: str, label: str, model: str, values: Mapping[Any, int]) -> Metric:
    family = CounterMetricFamily(name, doc, labels=["model_name", label])
    for key, value in values.items():
        family.add_metric([model, key], value)
    return family
