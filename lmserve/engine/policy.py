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
        self._aside: set[int] = set()  # those of them that are not in the heap

    def __len__(self) -> int:
        return len(self._sequences)

    def push(self, seq: Sequence) -> None:
        self._sequences[seq.rid] = seq
        heapq.heappush(self._heap, (self._order(seq), seq.rid))

    def peek(self) -> Sequence | None:
        """The next to run, if any."""
        while self._heap and self._heap[0][1] not in self._sequences:
            heapq.heappop(self._heap)
        return self._sequences[self._heap[0][1]] if self._heap else None

    def pop(self) -> Sequence:
        """The next to run. There must be one."""
        seq = self._pop()
        del self._sequences[seq.rid]
        return seq

    def put_aside(self) -> None:
        """The next waits on, but is not the next any more, until it is taken back."""
        self._aside.add(self._pop().rid)

    def take_back(self, seq: Sequence) -> None:
        """Puts it where it was in the order, unless it was removed meanwhile."""
        if seq.rid in self._aside and self._sequences[seq.rid] is seq:
            self._aside.remove(seq.rid)
            self.push(seq)

    def _pop(self) -> Sequence:
        seq = self.peek()
        assert seq is not None, "nobody is next"
        heapq.heappop(self._heap)
        return seq

    def get(self, rid: int) -> Sequence | None:
        return self._sequences.get(rid)

    def remove(self, rid: int) -> None:
        sequences = self._sequences
        del sequences[rid]
        self._aside.discard(rid)
        if len(self._heap) > 2 * len(sequences) + 64:  # most of it is stale
            self._heap = [
                (self._order(seq), rid) for rid, seq in sequences.items() if rid not in self._aside
            ]
            heapq.heapify(self._heap)
