"""Where the time of an answer goes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Timings:
    """Of an answer so far."""

    queue_s: float | None  # in the engine, before its first step; None: it has no token yet
    prompt_s: float  # from there to the first token
    answer_s: float  # from the first token to the last
    num_prompt_run: int  # tokens of the prompt, less those from the prefix tree
    num_tokens: int  # of the answer


@dataclass(frozen=True, slots=True)
class Moments:
    """Of an answer that ended now, on the service's clock."""

    arrived_s: float
    encoded_s: float | None  # its prompt was tokens
    submitted_s: float
    queue_s: float | None  # as in `Timings`
    first_s: float | None  # its first token came; None: none did
    last_s: float
    now_s: float


class Stopwatch:
    """Of one answer; made when it is submitted."""

    __slots__ = ("_arrived_s", "_clock", "_last_s", "_submitted_s", "queue_s", "ttft_s")

    def __init__(self, clock: Callable[[], float], arrived_s: float):
        self._clock = clock
        self._arrived_s = arrived_s
        self._submitted_s = clock()
        self._last_s = 0.0
        self.ttft_s: float | None = None  # from the request's arrival to its first token
        self.queue_s: float | None = None  # as in `Timings`

    def begin(self, queue_s: float | None) -> None:
        """The first tokens."""
        self._last_s = self._clock()
        self.ttft_s = self._last_s - self._arrived_s
        self.queue_s = queue_s

    def lap(self) -> float:
        """Further tokens: the time since those before."""
        now = self._clock()
        gap_s, self._last_s = now - self._last_s, now
        return gap_s

    def running_s(self, queue_s: float | None) -> float:
        """Since its first step."""
        return self._clock() - self._submitted_s - (queue_s or 0.0)

    @property
    def passed_s(self) -> float:
        """Since the request's arrival."""
        return self._clock() - self._arrived_s

    def moments(self, encoded_s: float | None) -> Moments:
        first_s = None if self.ttft_s is None else self._arrived_s + self.ttft_s
        return Moments(
            self._arrived_s,
            encoded_s,
            self._submitted_s,
            self.queue_s,
            first_s,
            self._last_s,
            self._clock(),
        )

    @property
    def prompt_s(self) -> float:
        if self.ttft_s is None:
            return 0.0
        return self._arrived_s + self.ttft_s - self._submitted_s - (self.queue_s or 0.0)

    @property
    def answer_s(self) -> float:
        return 0.0 if self.ttft_s is None else self._last_s - self._arrived_s - self.ttft_s
