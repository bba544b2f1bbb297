"""The waiting queue, against all that wait, sorted anew each time."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from lmserve.engine.policy import WaitingQueue, fair_order
from lmserve.engine.sequence import Sequence
from lmserve.engine.shares import Share
from lmserve.sampling import SamplingParams


class Queue(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.queue = WaitingQueue()
        self.shares = [Share() for _ in range(4)]
        self.waiting: list[Sequence] = []  # those put aside are not among them
        self.aside: list[Sequence] = []
        self.running: list[Sequence] = []
        self.num_made = 0

    @rule(share=st.integers(0, 3), priority=st.integers(0, 1))
    def comes(self, share: int, priority: int) -> None:
        seq = Sequence(self.num_made, [1], SamplingParams(), priority=priority)
        seq.arrival, seq.share = self.num_made, self.shares[share]
        self.num_made += 1
        self.queue.push(seq)
        self.waiting.append(seq)

    @precondition(lambda self: self.waiting)
    @rule(aside=st.booleans())
    def next(self, aside: bool) -> None:
        first = min(self.waiting, key=fair_order)
        self.waiting.remove(first)
        if aside:
            self.queue.put_aside()
            self.aside.append(first)
        else:
            assert self.queue.pop() is first
            self.running.append(first)

    @precondition(lambda self: self.aside)
    @rule(data=st.data())
    def comes_back(self, data: st.DataObject) -> None:
        seq = data.draw(st.sampled_from(self.aside))
        self.aside.remove(seq)
        self.queue.take_back(seq)
        self.waiting.append(seq)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def is_preempted(self, data: st.DataObject) -> None:
        seq = data.draw(st.sampled_from(self.running))
        self.running.remove(seq)
        self.queue.push(seq)
        self.waiting.append(seq)

    @precondition(lambda self: self.waiting or self.aside)
    @rule(data=st.data())
    def leaves(self, data: st.DataObject) -> None:
        seq = data.draw(st.sampled_from([*self.waiting, *self.aside]))
        (self.waiting if seq in self.waiting else self.aside).remove(seq)
        self.queue.remove(seq.rid)

    @rule(share=st.integers(0, 3), served=st.floats(-10, 10))
    def is_charged(self, share: int, served: float) -> None:
        self.shares[share].served = served
        self.queue.reorder()

    @invariant()
    def has_the_first(self) -> None:
        assert self.queue.peek() is min(self.waiting, key=fair_order, default=None)
        assert len(self.queue) == len(self.waiting) + len(self.aside)


TestQueue = Queue.TestCase
TestQueue.settings = settings(max_examples=50, stateful_step_count=40, deadline=None)
