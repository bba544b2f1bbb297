"""What is counted: plain integers on the loop; a step costs a comparison and a few additions.

Names and labels, and all that is known without counting, are put together only when somebody
scrapes (`lmserve.service.exposition`).
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import dataclass

from lmserve.bridge.handle import EngineHandle
from lmserve.messages import EngineInfo, EngineStats
from lmserve.service.catalog import model_name
from lmserve.service.histogram import Histogram
from lmserve.settings import Settings
from lmserve.types import FinishReason, Usage

MAX_UNKNOWN_FIELDS = 100  # names kept apart; clients choose them
_MAX_FIELD_CHARS = 64
MAX_KEYS = 1000  # API keys counted apart; a key file may change for ever
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
_DELAYS = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.25,
           0.5, 1.0, 2.5)  # fmt: skip
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
    owner: str = ""  # whose API key; "" for none


@dataclass(slots=True)
class KeyCounts:
    """Of one API key."""

    num_requests: int = 0  # that ended
    num_rejected: int = 0
    prompt_tokens: int = 0
    answer_tokens: int = 0

    def add(self, other: KeyCounts) -> None:
        self.num_requests += other.num_requests
        self.num_rejected += other.num_rejected
        self.prompt_tokens += other.prompt_tokens
        self.answer_tokens += other.answer_tokens


class Metrics:
    """Used on the server's loop only."""

    def __init__(self, handle: EngineHandle, settings: Settings):
        self._settings = settings
        handle.on_step = self._on_step
        self._num_steps = 0  # of the engine, seen
        self.engine: EngineInfo | None = None  # the one that serves, or served last
        self.engine_restarts = 0
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self.generation_tokens = 0
        self.finished: dict[FinishReason, int] = dict.fromkeys(_REASONS, 0)
        self.rejections = Counter(dict.fromkeys(("requests", "tokens", "bytes", "wait"), 0))
        self.keys: dict[str, KeyCounts] = {}  # by owner
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
        self.step_delivery = Histogram(_DELAYS)

    @property
    def model(self) -> str:
        """The name that clients use; empty until it is known."""
        return "" if self.engine is None else model_name(self._settings, self.engine)

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
            asyncio.get_running_loop().call_soon(self._written, stats.sent_s, 1)

    def _written(self, sent_s: float, turns: int) -> None:
        """All of the step that goes at once is on its sockets: uvloop writes at the end of a turn,
        this one or the next."""
        if turns:
            asyncio.get_running_loop().call_soon(self._written, sent_s, turns - 1)
        else:
            self.step_delivery.add(time.monotonic() - sent_s)

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
        if record.owner:
            key = self._key(record.owner)
            key.num_requests += 1
            key.prompt_tokens += usage.prompt_tokens
            key.answer_tokens += usage.completion_tokens

    def _key(self, owner: str) -> KeyCounts:
        if owner not in self.keys and len(self.keys) >= MAX_KEYS:
            owner = _OTHER
        return self.keys.setdefault(owner, KeyCounts())

    def choices_finished(self, num: int, most_tokens: int) -> None:
        """All answers to one prompt have ended; the longest has so many tokens."""
        self.num_choices.add(num)
        self.most_tokens.add(most_tokens)

    def rejected(self, reason: str, owner: str = "") -> None:
        """A 429 or 503 for want of room: a word for the limit, which no client chose, and whose
        API key it met."""
        self.rejections[reason] += 1
        if owner:
            self._key(owner).num_rejected += 1

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
        if self.engine is not None and self.engine is not info:
            self.engine_restarts += 1
        self.engine = info
