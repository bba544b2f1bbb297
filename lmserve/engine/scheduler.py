"""Who runs in the next step, and how many tokens of each.

There are no phases. A sequence is some tokens behind; the step's budget is shared out to
those that are one behind (decodes: each gets its token in every step), then in the policy's
order to those further behind and to the waiting queue. When a block is missing, the sequence
that is last in that order loses its own and waits again; what it computed stays in the prefix
tree, so that coming back is a match. Who begins like one that is computing that right now waits
for it, and lets others pass (`cache.inflight`). Drafts get what is left where nobody else is
behind or waits; to one who waits they lose blocks and places at once.
"""

from __future__ import annotations

from lmserve.engine.cache.inflight import InFlight
from lmserve.engine.cache.manager import CacheManager
from lmserve.engine.plan import Row, StepPlan
from lmserve.engine.policy import Order, WaitingQueue, priority_then_arrival
from lmserve.engine.sequence import Sequence, State

DRAFT_SHARE = 8  # beside others' decodes, drafts take one part in so many of a step at most


class Scheduler:
    def __init__(
        self,
        cache: CacheManager,
        *,
        max_batch_size: int,
        max_step_tokens: int,
        order: Order = priority_then_arrival,
    ):
        self.cache = cache
        self.max_step_tokens = max_step_tokens
        # Never more sequences than the budget has tokens: a decode is never left out.
        self.max_running = min(max_batch_size, max_step_tokens)
        self.order = order
        self.waiting = WaitingQueue(order)
        self.in_flight = InFlight(cache, order)
        self.running: dict[int, Sequence] = {}  # by rid, in the order of admission
        self.num_preemptions = 0
        self._num_arrivals = 0
        self._dropped: list[Sequence] = []
        self._rows: dict[int, Row] = {}  # of the plan being made
        self._budget = 0

    # --- requests come and go -------------------------------------------------------------

    def add(self, seq: Sequence) -> None:
        """Queues a sequence. Its `max_len` must fit the pool."""
        most = max(len(seq.tokens), seq.max_len - 1)
        assert self.cache.num_blocks_for(most) <= self.cache.pool.num_blocks
        seq.arrival = self._num_arrivals
        self._num_arrivals += 1
        self.waiting.push(seq)

    def get(self, rid: int) -> Sequence | None:
        return self.running.get(rid) or self.waiting.get(rid)

    def finish(self, seq: Sequence, *, failed: bool = False) -> None:
        """Ends a sequence in any state. What a failed one computed is not offered to others."""
        if seq.state is State.RUNNING:
            del self.running[seq.rid]
            if failed:
                self.cache.forget(seq)
            else:
                self.cache.release(seq)
        else:
            self.waiting.remove(seq.rid)
        seq.to(State.FINISHED)

    @property
    def has_work(self) -> bool:
        return bool(self.running) or len(self.waiting) > 0

    # --- the plan of one step -------------------------------------------------------------

    def schedule(self, now_s: float) -> StepPlan:
        """The plan of the step that starts now."""
        self._rows = {}
        self._budget = self.max_step_tokens
        for seq in self.in_flight.take_ready(spare=len(self.running)):
            self.waiting.take_back(seq)
        others_wait = self._others_wait()
        if others_wait:
            self._put_drafts_off()
        num_preemptions = self.num_preemptions
        self._plan_decodes()
        # After a preemption there is no block to give away.
        admitting = num_preemptions == self.num_preemptions
        behind = [s for s in self.running.values() if s.num_behind > 1 and not s.is_draft]
        places = self.waiting and len(self.running) < self.max_running
        self.in_flight.begin_step(self.running.values() if places else ())
        for seq in sorted(behind, key=self.order):
            admitting = admitting and self._admit_waiting(now_s, before=seq)
            if self._budget:
                self._add_row(seq, min(seq.num_behind, self._budget))
        if admitting:
            self._admit_waiting(now_s)
            if not behind and not others_wait:
                self._plan_drafts(now_s)
        cache = self.cache
        return StepPlan(list(self._rows.values()), cache.take_copies(), cache.take_scrubs())

    def _others_wait(self) -> bool:
        """Whether anyone waits who is no draft, be it for a leader, which is none either."""
        seq = self.waiting.peek()
        if seq is not None and not seq.is_draft:
            return True
        return any(not leader.is_draft for leader in self.in_flight.leaders)

    def _plan_decodes(self) -> None:
        for seq in list(self.running.values()):
            if seq.num_behind != 1 or seq.is_draft or seq.state is not State.RUNNING:
                continue
            if self._has_blocks(seq):
                self._add_row(seq, 1)

    def _admit_waiting(
        self, now_s: float, *, before: Sequence | None = None, drafts: bool = False
    ) -> bool:
        """Admits who waits, in order, and at most those that come before another. Says False
        when there is no block for the next."""
        running, waiting = self.running, self.waiting
        while self._budget and len(running) < self.max_running:
            seq = waiting.peek()
            if seq is None or (seq.is_draft and not drafts):
                return True
            if before is not None and self.order(before) < self.order(seq):
                return True
            if self.in_flight.put_aside(seq):
                waiting.put_aside()
                continue
            # Each running sequence may need a block soon: a newcomer must not be preempted
            # again by the next of them.
            alone = not running and not seq.is_draft  # a draft breaks no pin
            if not self.cache.admit(seq, spare=len(running), alone=alone):
                assert running or drafts, f"sequence {seq.rid} does not fit an empty pool"
                return False
            waiting.pop()
            seq.to(State.RUNNING)
            if seq.queue_s is None:
                seq.queue_s = now_s - seq.submitted_s
            running[seq.rid] = seq
            self.in_flight.add(seq)
            self._add_row(seq, min(seq.num_behind, self._budget))
        return True

    def _has_blocks(self, seq: Sequence) -> bool:
        """Room for one more token of a decode, if need be taken from whoever ranks last."""
        cache = self.cache
        if seq.num_computed < len(seq.blocks) * cache.block_size:
            return True

        def alone() -> bool:
            return len(self.running) == 1 and not seq.is_draft

        while not cache.grow(seq, len(seq.tokens), alone=alone()):
            last = max(self.running.values(), key=self.order)
            self._preempt(last)
            if last is seq:
                return False
        return True

    # --- drafts ---------------------------------------------------------------------------

    def _put_drafts_off(self) -> None:
        for seq in [seq for seq in self.running.values() if seq.is_draft]:
            self._preempt(seq)

    def _plan_drafts(self, now_s: float) -> None:
        """What is left of the step, in order."""
        num_preemptions = self.num_preemptions
        if self._rows:
            self._budget = min(self._budget, max(1, self.max_step_tokens // DRAFT_SHARE))
        admitting = True
        for seq in sorted((s for s in self.running.values() if s.is_draft), key=self.order):
            admitting = admitting and self._admit_waiting(now_s, before=seq, drafts=True)
            if self._budget and seq.state is State.RUNNING and self._has_blocks(seq):
                self._add_row(seq, min(seq.num_behind, self._budget))
            admitting = admitting and num_preemptions == self.num_preemptions
        if not admitting:
            return
        if not self._admit_waiting(now_s, drafts=True) and not self.running:
            seq = self.waiting.pop()  # what it needs is pinned
            seq.to(State.FINISHED)
            self._dropped.append(seq)

    def take_dropped(self) -> list[Sequence]:
        """Drafts that this step's plan ended, for want of room."""
        dropped, self._dropped = self._dropped, []
        return dropped

    def _preempt(self, seq: Sequence) -> None:
        row = self._rows.pop(seq.rid, None)
        if row is not None:
            self._budget += len(row.token_ids)
        del self.running[seq.rid]
        self.cache.release(seq)
        seq.to(State.PREEMPTED)
        self.waiting.push(seq)
        self.num_preemptions += 1

    def _add_row(self, seq: Sequence, num_tokens: int) -> None:
        tokens = seq.tokens
        start = seq.num_computed
        end = start + num_tokens
        samples = end == len(tokens) and not seq.is_full  # it is from the start, of max_tokens 0
        self._budget -= num_tokens
        self._rows[seq.rid] = Row(
            seq.rid,
            tokens[start:end],
            start,
            seq.blocks,
            seq.sampling if samples else None,
            tokens,
            seq.num_prompt_tokens,
            seq.bans,
            seq.reasoning.forced(tokens) if samples and seq.reasoning else None,
            seq.rules,
            seq.prompt_outputs.share(start, end) if seq.prompt_outputs else None,
        )
