"""Graphs of the decode step, by how many rows it has and by what kind it is.

A server is ready before it has any. They are captured between steps: those that steps have missed
first, and while nobody asks for anything the rest. Until a step's graph is there it takes one that
is larger, or does without.
"""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Generic, TypeVar

from lmserve.device.base import Device, Graph

log = logging.getLogger(__name__)

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")

# Capturing takes as long as about so many steps without a graph: who passes through a size on
# the way to another waits for nothing.
MIN_MISSES = 8


@dataclass(frozen=True, slots=True)
class DecodeGraph(Generic[T]):
    num_rows: int  # that it computes; those beyond a step's own are padding
    graph: Graph[T]


class DecodeGraphs(Generic[K, T]):
    """`build(num_rows, kind)` gives what is captured: a run on tensors that its owner keeps, and
    fills before a replay. All graphs share one pool of memory: they replay one after the other,
    so that what is not among the outputs of one may be overwritten by the next."""

    def __init__(
        self,
        device: Device,
        build: Callable[[int, K], Callable[[], T]],
        *,
        max_rows: int,
        kinds: Sequence[K],  # those captured unasked, in this order
    ):
        self.buckets = buckets(max_rows)
        self._device = device
        self._build = build
        self._kinds = kinds
        self._pool = device.graph_pool()
        self._graphs: dict[K, dict[int, Graph[T]]] = {}
        self._misses: Counter[tuple[K, int]] = Counter()
        self._failed: set[K] = set()  # no more of these are captured
        self._is_full = False  # no memory for another

    def find(self, num_rows: int, kind: K) -> DecodeGraph[T] | None:
        """None: the step runs without a graph. One of up to twice the rows is better than none:
        the weights are read once for either, while launching kernels one by one takes longer
        than computing them."""
        place = bisect_left(self.buckets, num_rows)
        if place == len(self.buckets):
            return None
        wanted = self.buckets[place]
        graphs = self._graphs.get(kind, {})
        if wanted not in graphs:
            self._misses[kind, wanted] += 1
        for bucket in self.buckets[place:]:
            if bucket > max(wanted, 2 * num_rows):
                break
            if bucket in graphs:
                return DecodeGraph(bucket, graphs[bucket])
        return None

    @property
    def has_wanted(self) -> bool:
        """Whether steps have missed one often enough to be held up for it."""
        return self._most_wanted(MIN_MISSES) is not None

    @property
    def has_chores(self) -> bool:
        """Whether there is any to capture while nothing else is to be done."""
        return self._next() is not None

    def do_chore(self) -> None:
        """Captures one. Between steps."""
        chosen = self._next()
        if chosen is not None:
            kind, bucket = chosen
            self._capture(kind, bucket)
            del self._misses[chosen]

    def invalidate(self) -> None:
        """A tensor that was captured has moved: all are captured again."""
        self._graphs.clear()
        self._pool = self._device.graph_pool()
        self._is_full = False

    def _next(self) -> tuple[K, int] | None:
        return self._most_wanted(1) or self._missing()

    def _most_wanted(self, min_misses: int) -> tuple[K, int] | None:
        wanted = [each for each in self._misses if self._can_capture(*each)]
        most = max(wanted, key=self._misses.__getitem__, default=None)
        return None if most is None or self._misses[most] < min_misses else most

    def _missing(self) -> tuple[K, int] | None:
        """The largest first: what it takes of the pool holds what any other takes after it, while
        smaller ones would leave gaps too small for those to come. Then from the smallest on, as
        few people ask before many do."""
        for kind in self._kinds:
            for bucket in (self.buckets[-1], *self.buckets):
                if self._can_capture(kind, bucket):
                    return kind, bucket
        return None

    def _can_capture(self, kind: K, bucket: int) -> bool:
        if self._is_full or kind in self._failed:
            return False
        return bucket not in self._graphs.get(kind, {})

    def _capture(self, kind: K, bucket: int) -> None:
        began = perf_counter()
        try:
            graph = self._captured(kind, bucket)
        except Exception as error:
            if self._device.is_out_of_memory(error):
                self._is_full = True
                log.warning("no memory is left for more CUDA graphs: some steps run without")
            else:
                self._failed.add(kind)
                self._pool = self._device.graph_pool()  # the failure may have spoilt the last
                log.warning(
                    "%s steps of %d rows cannot be captured and run without a graph",
                    kind,
                    bucket,
                    exc_info=True,
                )
            return
        self._graphs.setdefault(kind, {})[bucket] = graph
        log.debug("captured %s steps of %d rows in %.2f s", kind, bucket, perf_counter() - began)

    def _captured(self, kind: K, bucket: int) -> Graph[T]:
        run = self._build(bucket, kind)
        try:
            return self._device.capture(run, self._pool)
        except Exception as error:
            if not self._device.is_out_of_memory(error):
                raise
        self._device.release_cached()  # a capture cannot do so by itself
        if not any(self._graphs.values()):  # the pool went with what failed
            self._pool = self._device.graph_pool()
        return self._device.capture(run, self._pool)


def buckets(max_rows: int) -> list[int]:
    """1, 2, 4, then steps of a half, a quarter, an eighth of the power of two below: few rows cost
    what one does, for the weights are read once for all, so padding is free; hundreds are
    computed one by one. At most a third of a step is padding up to 32 rows, a fifth up to 128, a
    ninth above."""
    sizes = [1, 2, 4]
    while sizes[-1] < max_rows:
        last = sizes[-1]
        octave = 1 << (last.bit_length() - 1)
        parts = 1 if last < 8 else 2 if last < 32 else 4 if last < 128 else 8
        sizes.append(last + octave // parts)
    return [size for size in sizes if size < max_rows] + [max_rows]
