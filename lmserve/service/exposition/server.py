"""What is told of the server's own state: its load, its streams, its store."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client.metrics_core import Metric

from lmserve.service.exposition.families import Families
from lmserve.service.load import Load
from lmserve.service.metrics import Metrics
from lmserve.service.store.keeper import Keeper
from lmserve.service.streams.streams import Streams


def load_families(f: Families, load: Load, name_of: Callable[[str], str]) -> Iterator[Metric]:
    for name, doc, value in (
        ("lmserve:requests_open", "Requests being prepared, waiting or running",
         load.num_requests),
        ("lmserve:prompt_tokens_open", "Their prompt tokens", load.num_tokens),
        ("lmserve:oldest_wait_seconds", "How long the oldest of those that wait has waited",
         load.oldest_wait_s),
        ("lmserve:draining", "1 while the server takes nothing new and lets answers finish",
         int(load.is_draining)),
    ):  # fmt: skip
        yield f.gauge(name, doc, value)
    by_name: dict[str, int] = {}
    for owner, num in load.num_by_owner.items():
        by_name[name_of(owner)] = by_name.get(name_of(owner), 0) + num
    yield f.gauges(
        "lmserve:key_requests_open", "Requests waiting or running, by API key", "key", by_name
    )


def stream_families(f: Families, metrics: Metrics, streams: Streams) -> Iterator[Metric]:
    yield f.gauge("lmserve:websockets", "WebSockets that are open", metrics.num_sockets)
    yield f.gauges(
        "lmserve:streams", "Streams that can be read again", "state",
        {"open": len(streams) - streams.num_ended, "ended": streams.num_ended},
    )  # fmt: skip
    yield f.gauge("lmserve:stream_bytes", "Events kept of them in memory", streams.num_bytes)


def store_families(f: Families, metrics: Metrics, keeper: Keeper) -> Iterator[Metric]:
    size = keeper.size
    yield f.gauge("lmserve:sessions", "Conversations kept, when last counted", size.num_sessions)
    yield f.gauge("lmserve:session_messages", "Their messages", size.num_messages)
    yield f.gauge("lmserve:store_bytes", "The file that has them", size.num_bytes)
    yield f.gauge("lmserve:store_writes_open", "Writes that wait or run", keeper.num_writing)
    yield f.histogram(
        "lmserve:store_write_seconds", "A write's call to its end on the disk", keeper.write_times
    )
    yield f.counter(
        "lmserve:store_failures", "Writes that the disk or the file refused", keeper.num_failures
    )
    yield f.gauge(
        "lmserve:session_kv_tokens_pinned", "Tokens of conversations kept in the KV cache",
        metrics.kv_tokens_pinned,
    )  # fmt: skip
    yield f.gauge(
        "lmserve:session_kv_disk_bytes", "KV of conversations on disk", metrics.kv_bytes_spilled
    )
