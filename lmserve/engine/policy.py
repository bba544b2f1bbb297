"""Who comes before whom, and the waiting queue."""

from __future__ import annotations

import heapq

from lmserve.engine.sequence import Sequence
from lmserve.engine.shares import Share

Entry = tuple[int, int, int]  # priority, arrival, rid
First = tuple[int, float, int, int]  # the fair order, rid


def priority_then_arrival(seq: Sequence) -> tuple[int, int]:
    """The order within a tenant: first come, first served among equals. A preempted sequence
    arrived before all that wait beside it, so it comes back to their front."""
    return (seq.priority, seq.arrival)


def fair_order(seq: Sequence) -> tuple[int, float, int]:
    """Among those equally urgent, first those of the tenant that had least. It does not change
    while a step is planned."""
    return (seq.priority, seq.share.served, seq.arrival)


class WaitingQueue:
    """Sequences in the fair order: a heap a tenant, whose order does not depend on what tenants
    had, and a heap of their firsts. Removal from the middle is cheap: the heap's entry goes
    stale."""

    def __init__(self) -> None:
        self._heaps: dict[Share, list[Entry]] = {}  # none is empty, the first of each is not stale
        self._num_entries = 0  # of all of them
        self._firsts: list[First] | None = None  # of all of them; None: to be made anew
        self._sequences: dict[int, Sequence] = {}
        self._aside: set[int] = set()  # those of them that are not in a heap

    def __len__(self) -> int:
        return len(self._sequences)

    def reorder(self) -> None:
        """What tenants had is not what it was."""
        self._firsts = None

    def push(self, seq: Sequence) -> None:
        self._sequences[seq.rid] = seq
        entry = (*priority_then_arrival(seq), seq.rid)
        heap = self._heaps.setdefault(seq.share, [])
        heapq.heappush(heap, entry)
        self._num_entries += 1
        if heap[0] is entry:
            self._rank(seq)

    def peek(self) -> Sequence | None:
        """The next to run, if any."""
        if self._firsts is None:
            self._firsts = [
                (heap[0][0], share.served, heap[0][1], heap[0][2])
                for share, heap in self._heaps.items()
            ]
            heapq.heapify(self._firsts)
        while self._firsts:
            seq = self._sequences.get(self._firsts[0][-1])
            if seq is not None and self._is_first(seq):
                return seq
            heapq.heappop(self._firsts)
        return None

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

    def _is_first(self, seq: Sequence) -> bool:
        """Of its tenant's."""
        heap = self._heaps.get(seq.share)
        return heap is not None and heap[0][-1] == seq.rid

    def _rank(self, seq: Sequence) -> None:
        """It is the first of its tenant's now."""
        if self._firsts is not None:
            heapq.heappush(self._firsts, (*fair_order(seq), seq.rid))

    def _pop(self) -> Sequence:
        seq = self.peek()
        assert seq is not None, "nobody is next"
        self._drop_first(seq.share)
        self._drop_stale(seq.share)
        return seq

    def _drop_first(self, share: Share) -> None:
        heapq.heappop(self._heaps[share])
        self._num_entries -= 1
        if not self._heaps[share]:
            del self._heaps[share]

    def _drop_stale(self, share: Share) -> None:
        """Until the first of a tenant's is one that waits."""
        while (heap := self._heaps.get(share)) is not None:
            if (seq := self._sequences.get(heap[0][-1])) is not None:
                self._rank(seq)
                return
            self._drop_first(share)

    def get(self, rid: int) -> Sequence | None:
        return self._sequences.get(rid)

    def remove(self, rid: int) -> None:
        sequences = self._sequences
        seq = sequences.pop(rid)
        self._aside.discard(rid)
        self._drop_stale(seq.share)
        if self._num_entries > 2 * len(sequences) + 64:  # most of it is stale
            self._heaps, self._num_entries, self._firsts = {}, 0, None
            for seq in list(sequences.values()):
                if seq.rid not in self._aside:
                    self.push(seq)
