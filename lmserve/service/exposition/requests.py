"""What is told of requests: how they came out, how long they took, whose they were."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client.metrics_core import Metric

from lmserve.service.exposition.families import Families
from lmserve.service.metrics import KeyCounts, Metrics


def families(f: Families, metrics: Metrics) -> Iterator[Metric]:
    yield from _counters(f, metrics)
    yield from _labelled(f, metrics)
    yield from _latencies(f, metrics)
    yield from _sizes(f, metrics)


def _counters(f: Families, metrics: Metrics) -> Iterator[Metric]:
    for name, doc, value in (
        ("vllm:prompt_tokens", "Prompt tokens of requests answered", metrics.prompt_tokens),
        ("vllm:prompt_tokens_cached", "Of these, from the prefix tree", metrics.cached_tokens),
        ("vllm:generation_tokens", "Tokens generated", metrics.generation_tokens),
        ("lmserve:session_kv_saves", "Conversations written to disk", metrics.kv_saves),
    ):
        yield f.counter(name, doc, value)


def _labelled(f: Families, metrics: Metrics) -> Iterator[Metric]:
    for name, doc, label, values in (
        ("vllm:request_success", "Requests ended", "finished_reason", metrics.finished),
        ("vllm:admission_rejections", "Requests refused, by the limit they met", "reason",
         metrics.rejections),
        ("lmserve:batch_lines", "Lines of batches that ended", "result", metrics.batch_lines),
        ("lmserve:session_kv_restores", "Reads of conversations' KV, by how they went", "result",
         metrics.kv_restores),
        ("lmserve:websocket_events", "Events that clients sent", "type", metrics.socket_events),
        ("lmserve:unknown_fields", "JSON fields that were ignored", "field",
         metrics.unknown_fields),
    ):  # fmt: skip
        yield f.counters(name, doc, label, values)
    yield f.gauges(
        "lmserve:batch_lines_running", "Lines of batches being run", "endpoint",
        metrics.batch_lines_running,
    )  # fmt: skip


def _latencies(f: Families, metrics: Metrics) -> Iterator[Metric]:
    for histogram, name, doc in (
        (metrics.ttft, "time_to_first_token_seconds", "Arrival to first token"),
        (metrics.inter_token, "inter_token_latency_seconds", "Between tokens of a request"),
        (metrics.time_per_token, "request_time_per_output_token_seconds", "Its mean, a request"),
        (metrics.e2e, "e2e_request_latency_seconds", "Arrival to end"),
        (metrics.decode, "request_decode_time_seconds", "First token to last"),
        (metrics.queue, "request_queue_time_seconds", "Submission to the first step"),
        (metrics.prefill, "request_prefill_time_seconds", "First step to first token"),
        (metrics.inference, "request_inference_time_seconds", "First step to last token"),
    ):
        yield f.histogram(f"vllm:{name}", doc, histogram)
    yield f.histogram(
        "lmserve:step_delivery_seconds", "A step's end to its text on the sockets",
        metrics.step_delivery,
    )  # fmt: skip


def _sizes(f: Families, metrics: Metrics) -> Iterator[Metric]:
    for histogram, name, doc in (
        (metrics.prompt_sizes, "request_prompt_tokens", "Prompt tokens of a request"),
        (metrics.generation_sizes, "request_generation_tokens", "Tokens generated, a request"),
        (metrics.most_tokens, "request_max_num_generation_tokens", "The most, of n answers"),
        (metrics.max_tokens, "request_params_max_tokens", "max_tokens, cut to what fits"),
        (metrics.num_choices, "request_params_n", "Answers asked for"),
        (metrics.step_tokens, "iteration_tokens_total", "Tokens run in a step"),
    ):
        yield f.histogram(f"vllm:{name}", doc, histogram)


def key_families(f: Families, metrics: Metrics, name_of: Callable[[str], str]) -> Iterator[Metric]:
    """Of API keys, under names for people: where two share one, they are counted together."""
    counts: dict[str, KeyCounts] = {}
    for owner, own in metrics.keys.items():
        counts.setdefault(name_of(owner), KeyCounts()).add(own)
    yield f.counters(
        "lmserve:key_requests", "Requests ended, by API key", "key",
        {name: own.num_requests for name, own in counts.items()},
    )  # fmt: skip
    yield f.counters(
        "lmserve:key_rejections", "Requests refused, by API key", "key",
        {name: own.num_rejected for name, own in counts.items()},
    )  # fmt: skip
    yield f.counters_by(
        "lmserve:key_tokens",
        "Tokens of requests that ended, by API key",
        ["key", "kind"],
        (
            ([name, kind], value)
            for name, own in counts.items()
            for kind, value in (("prompt", own.prompt_tokens), ("answer", own.answer_tokens))
        ),
    )
