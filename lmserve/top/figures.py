"""What the dashboard shows, as numbers: no terminal here."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from lmserve.top.snapshot import Snapshot, Window

QUANTILES = (0.5, 0.95, 0.99)
MAX_HISTORY = 240  # looks
MAX_WINDOW = 10  # looks that a rate is taken over

LATENCIES = (
    ("first token", "vllm:time_to_first_token_seconds"),
    ("  queue", "vllm:request_queue_time_seconds"),
    ("  prompt", "vllm:request_prefill_time_seconds"),
    ("next token", "vllm:inter_token_latency_seconds"),
    ("answer", "vllm:e2e_request_latency_seconds"),
)


@dataclass(frozen=True, slots=True)
class Process:
    resident_bytes: float
    cpu: float  # cores
    num_files: float


@dataclass(frozen=True, slots=True)
class KeyFigures:
    name: str
    num_open: float
    requests_s: float
    tokens_s: float
    rejected_s: float


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one window; a share or quantile is None where nothing was seen."""

    version: str
    model: str
    state: str
    draining: bool
    up_s: float
    engine: str  # what serves, in a few words
    latencies: list[tuple[str, list[float | None]]]
    num_running: float
    num_waiting: float
    oldest_wait_s: float
    requests_s: float
    failed_share: float | None
    rejected_s: float
    prompt_tokens_s: float
    answer_tokens_s: float
    blocks: dict[str, float]
    hit_share: float | None
    step_tokens: float | None
    preemptions_s: float
    accepted_share: float | None
    restarts: float
    silent_s: float
    num_connections: float
    num_sockets: float
    num_streams: float
    num_sessions: float
    num_tasks: float
    loop_lag_s: float | None
    server: Process
    engine_process: Process | None
    keys: list[KeyFigures]

    @classmethod
    def of(cls, window: Window) -> Figures:
        now = window.now
        ended = window.added("vllm:request_success_total")
        failed = window.added("vllm:request_success_total", finished_reason="error")
        steps = window.added("vllm:iteration_tokens_total_count")
        states = now.by("lmserve:engine_state", "state")
        return cls(
            version=now.label("lmserve:build_info", "version"),
            model=now.label("lmserve:build_info", "model_name"),
            state=next((state for state, value in states.items() if value), "unknown"),
            draining=bool(now.value("lmserve:draining")),
            up_s=now.value("lmserve:uptime_seconds"),
            engine=_engine_words(now),
            latencies=[
                (label, [window.quantile(name, q) for q in QUANTILES]) for label, name in LATENCIES
            ],
            num_running=now.value("vllm:num_requests_running"),
            num_waiting=now.value("vllm:num_requests_waiting"),
            oldest_wait_s=now.value("lmserve:oldest_wait_seconds"),
            requests_s=ended / window.seconds,
            failed_share=failed / ended if ended else None,
            rejected_s=window.rate("vllm:admission_rejections_total"),
            prompt_tokens_s=window.rate("vllm:prompt_tokens_total"),
            answer_tokens_s=window.rate("vllm:generation_tokens_total"),
            blocks=now.by("lmserve:kv_blocks", "state"),
            hit_share=window.share(
                "vllm:prefix_cache_hits_total", "vllm:prefix_cache_queries_total"
            ),
            step_tokens=window.added("vllm:iteration_tokens_total_sum") / steps if steps else None,
            preemptions_s=window.rate("vllm:num_preemptions_total"),
            accepted_share=window.share(
                "vllm:spec_decode_num_accepted_tokens_total",
                "vllm:spec_decode_num_draft_tokens_total",
            ),
            restarts=now.value("lmserve:engine_restarts_total"),
            silent_s=now.value("lmserve:engine_silent_seconds"),
            num_connections=now.value("lmserve:connections"),
            num_sockets=now.value("lmserve:websockets"),
            num_streams=now.value("lmserve:streams", state="open"),
            num_sessions=now.value("lmserve:sessions"),
            num_tasks=now.value("lmserve:tasks"),
            loop_lag_s=window.quantile("lmserve:loop_lag_seconds", 0.99),
            server=_process(window, "process"),
            engine_process=_process(window, "lmserve_engine_process")
            if "lmserve_engine_process_resident_memory_bytes" in now.samples
            else None,
            keys=_keys(window),
        )


def _engine_words(now: Snapshot) -> str:
    told = [now.label("lmserve:build_info", label) for label in ("weights", "device")]
    return " on ".join(word for word in told if word and word != "none")


def _process(window: Window, prefix: str) -> Process:
    return Process(
        window.now.value(f"{prefix}_resident_memory_bytes"),
        window.rate(f"{prefix}_cpu_seconds_total"),
        window.now.value(f"{prefix}_open_fds"),
    )


def _keys(window: Window) -> list[KeyFigures]:
    """The busiest first."""
    num_open = window.now.by("lmserve:key_requests_open", "key")
    requests = window.rates_by("lmserve:key_requests_total", "key")
    tokens = window.rates_by("lmserve:key_tokens_total", "key")
    rejected = window.rates_by("lmserve:key_rejections_total", "key")
    found = [
        KeyFigures(
            name,
            num_open.get(name, 0.0),
            requests.get(name, 0.0),
            tokens.get(name, 0.0),
            rejected.get(name, 0.0),
        )
        for name in {*num_open, *requests}
    ]
    return sorted(found, key=lambda key: (-key.num_open, -key.tokens_s, key.name))


@dataclass(slots=True)
class Watched:
    """A server, as far as it has been seen."""

    url: str
    figures: Figures | None = None
    problem: str = ""  # why it cannot be seen now
    tokens_s: deque[float] = field(default_factory=lambda: deque(maxlen=MAX_HISTORY))
    running: deque[float] = field(default_factory=lambda: deque(maxlen=MAX_HISTORY))
    _snapshots: deque[Snapshot] = field(default_factory=lambda: deque(maxlen=MAX_WINDOW + 1))

    def see(self, snapshot: Snapshot) -> None:
        """The first tells no rates yet."""
        before = self._snapshots[-1] if self._snapshots else snapshot
        self._snapshots.append(snapshot)
        self.problem = ""
        self.figures = Figures.of(Window(self._snapshots[0], snapshot))
        last = Window(before, snapshot)
        self.tokens_s.append(last.rate("vllm:generation_tokens_total"))
        self.running.append(self.figures.num_running)

    def miss(self, problem: str) -> None:
        """It is away: rates over its absence would be wrong."""
        self.problem = problem
        self._snapshots.clear()
