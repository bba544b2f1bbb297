"""The order of the waiting queue."""

from __future__ import annotations

import heapq
from collections.abc import Callable

from lmserve.engine.sequence import Sequence

Order = Callable[[Sequence], tuple[int, ...]]


def priority_then_arrival(seq: Sequence) -> tuple[int, ...]:
    """First come, first served among equals. A preempted sequence arrived before all that
    wait beside it, so it comes back to their front."""
    return (seq.priority, seq.arrival)


class WaitingQueue:
    """Sequences in order. Removal from the middle is cheap: the heap's entry goes stale."""

    def __init__(self, order: Order = priority_then_arrival):
        self._order = order
        self._heap: list[tuple[tuple[int, ...], int]] = []
        self._sequences: dict[int, Sequence] = {}

    def __len__(self) -> int:
        return len(self._sequences)

    def push(self, seq: Sequence) -> None:
        self._sequences[seq.rid] = seq
        heapq.heappush(self._heap, (self._order(seq), seq.rid))

    def peek(self) -> Sequence:
        """The next to run. The queue must not be empty."""
        while self._heap[0][1] not in self._sequences:
            heapq.heappop(self._heap)
        return self._sequences[self._heap[0][1]]

    def pop(self) -> Sequence:
        seq = self.peek()
        heapq.heappop(self._heap)
        del self._sequences[seq.rid]
        return seq

    def get(self, rid: int) -> Sequence | None:
        return self._sequences.get(rid)

    def remove(self, rid: int) -> None:
        sequences = self._sequences
        del sequences[rid]
        if len(self._heap) > 2 * len(sequences) + 64:  # most of it is stale
            self._heap = [(self._order(seq), rid) for rid, seq in sequences.items()]
            heapq.heapify(self._heap)
