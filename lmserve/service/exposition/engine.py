"""What is told of the engine: its state, its blocks, its steps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

from prometheus_client.metrics_core import Metric

from lmserve import __version__
from lmserve.bridge.handle import EngineHandle, State
from lmserve.messages import EngineInfo, EngineStats
from lmserve.service.exposition.families import Families
from lmserve.settings import Settings

_BLOCK_STATES = ("free", "cached", "pinned", "held")


def families(
    f: Families, handle: EngineHandle, settings: Settings, known: EngineInfo | None, restarts: int
) -> Iterator[Metric]:
    """`known`: the engine that serves, or served last."""
    stats = handle.stats if handle.info is not None else EngineStats()
    yield from _now(f, stats)
    yield from _counters(f, handle.stats)
    yield from _state(f, handle, restarts)
    yield _build(f, settings, known)


def _now(f: Families, stats: EngineStats) -> Iterator[Metric]:
    used = stats.blocks_held + stats.blocks_pinned
    yield f.gauge("vllm:num_requests_running", "Requests in a step", stats.num_running)
    yield f.gauge("vllm:num_requests_waiting", "Requests waiting", stats.num_waiting)
    yield f.gauges(
        "vllm:num_requests_waiting_by_reason", "Why they wait", "reason",
        {"capacity": stats.num_waiting},
    )  # fmt: skip
    yield f.gauge(
        "vllm:kv_cache_usage_perc",
        "KV blocks held or pinned, 1 is all of them",
        used / stats.blocks_total if stats.blocks_total else 0.0,
    )
    yield f.gauges(
        "lmserve:kv_blocks", "KV blocks by state", "state",
        {state: getattr(stats, f"blocks_{state}") for state in _BLOCK_STATES},
    )  # fmt: skip


def _counters(f: Families, stats: EngineStats) -> Iterator[Metric]:
    for name, doc, value in (
        ("vllm:num_preemptions", "Sequences preempted", stats.preemptions),
        ("vllm:prefix_cache_queries", "Prompt tokens looked up", stats.prefix_queries),
        ("vllm:prefix_cache_hits", "Prompt tokens found", stats.prefix_hits),
        ("vllm:spec_decode_num_drafts", "Times tokens were proposed", stats.spec_proposals),
        ("vllm:spec_decode_num_draft_tokens", "Tokens proposed", stats.spec_proposed_tokens),
        ("vllm:spec_decode_num_accepted_tokens", "Of these, right", stats.spec_accepted_tokens),
        ("lmserve:engine_steps", "Steps of the engine since it started", stats.steps),
    ):
        yield f.counter(name, doc, value)


def _state(f: Families, handle: EngineHandle, restarts: int) -> Iterator[Metric]:
    health = handle.health()
    yield f.gauges(
        "lmserve:engine_state", "1 for the state that the engine is in", "state",
        {state: int(state == health.state) for state in get_args(State)},
    )  # fmt: skip
    yield f.gauge(
        "lmserve:engine_silent_seconds", "Since the engine's loop last answered", health.heard_s
    )
    yield f.gauge(
        "lmserve:engine_start_seconds", "What its last start took, until it was ready",
        handle.start_s,
    )  # fmt: skip
    yield f.counter("lmserve:engine_restarts", "Engines started after the first", restarts)


def _build(f: Families, settings: Settings, info: EngineInfo | None) -> Metric:
    return f.info(
        "lmserve:build_info",
        "What serves, as labels",
        {
            "version": __version__,
            "engine": settings.engine.engine,
            "architecture": "" if info is None else info.architecture,
            "weights": "" if info is None else info.weights,  # and the kernels
            "attention": "" if info is None else info.attention,
            "dtype": "" if info is None else info.dtype,
            "device": "" if info is None else info.device,
        },
    )
