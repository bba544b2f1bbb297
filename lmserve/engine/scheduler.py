"""Who runs in the next step, and how many tokens of each.

There are no phases. A sequence is some tokens behind; the step's budget is shared out to
those that are one behind (decodes: each gets its token in every step), then in the policy's
order to those further behind and to the waiting queue. When a block is missing, the sequence
that is last in that order loses its own and waits again; what it computed stays in the prefix
tree, so that coming back is a match. Who begins like one that is computing that right now waits
for it, and lets others pass (`cache.inflight`). Drafts get what is left where nobody else is
behind or waits; to one who waits they lose blocks and places at once. What the step has room
for even then may be proposed to the decodes (`speculation`).

The order is fair among tenants (`policy`, `shares`). Beside a prompt of one that had less than its
share, those that had more get little of the step, decodes in turns (`portions`); where they have
all places or blocks, they give some back to one that waits.
"""

from __future__ import annotations

from msgspec.structs import replace

from lmserve.engine.cache.inflight import InFlight
from lmserve.engine.cache.manager import CacheManager
from lmserve.engine.flight import Flight
from lmserve.engine.plan import UNREAD, Row, StepPlan
from lmserve.engine.policy import WaitingQueue, fair_order
from lmserve.engine.portions import Portions, one_to_spare
from lmserve.engine.sequence import Sequence, State
from lmserve.engine.shares import Shares
from lmserve.engine.speculation.speculation import Speculation

DRAFT_SHARE = 8  # beside others' decodes, drafts take one part in so many of a step at most


class Scheduler:
    def __init__(
        self,
        cache: CacheManager,
        *,
        max_batch_size: int,
        max_step_tokens: int,
        fair: bool = True,
        speculation: Speculation | None = None,
    ):
        self.cache = cache
        self.max_step_tokens = max_step_tokens
        # Never more sequences than the budget has tokens: a decode is never left out.
        self.max_running = min(max_batch_size, max_step_tokens)
        self.speculation = speculation
        self.shares = Shares(max_step_tokens, fair=fair)
        self.portions = Portions(self.shares)
        self.waiting = WaitingQueue()
        self.in_flight = InFlight(cache)
        self.running: dict[int, Sequence] = {}  # by rid, in the order of admission
        self.num_preemptions = 0
        self._num_arrivals = 0
        self._begun: list[int] = []  # rids
        self._dropped: list[Sequence] = []
        self._unfit: Sequence | None = None  # the next, for which the last plan had no blocks
        self._rows: dict[int, Row] = {}  # of the plan being made
        self._budget = 0

    # --- requests come and go -------------------------------------------------------------

    def add(self, seq: Sequence) -> None:
        """Queues a sequence. Its `max_len` must fit the pool."""
        most = max(len(seq.tokens), seq.max_len - 1)
        assert self.cache.num_blocks_for(most) <= self.cache.pool.num_blocks
        seq.arrival = self._num_arrivals
        self._num_arrivals += 1
        self.shares.enter(seq)
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
        self.shares.leave(seq)
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
            self._make_way()
        self.portions.begin_step(self._prompts, self.max_step_tokens)
        self._unfit = None
        num_preemptions = self.num_preemptions
        self._plan_decodes()
        # After a preemption there is no block to give away.
        admitting = num_preemptions == self.num_preemptions
        behind = [s for s in self.running.values() if s.num_behind > 1 and not s.is_draft]
        places = self.waiting and len(self.running) < self.max_running
        self.in_flight.begin_step(self.running.values() if places else ())
        for seq in sorted(behind, key=fair_order):
            admitting = admitting and self._admit_waiting(now_s, before=seq)
            if room := self.portions.room(seq, self._budget):
                self._add_row(seq, min(seq.num_behind, room))
        if admitting:
            self._admit_waiting(now_s)
            if not behind and not others_wait:
                self._plan_drafts(now_s)
        if self.speculation is not None and self.portions.favoured is None:
            self._propose(self.speculation)
        self.shares.charge((self.running[rid], row) for rid, row in self._rows.items())
        self.waiting.reorder()
        return StepPlan(list(self._rows.values()), **self.cache.take_moves())

    def _others_wait(self) -> bool:
        """Whether anyone waits who is no draft, be it for a leader, which is none either."""
        seq = self.waiting.peek()
        if seq is not None and not seq.is_draft:
            return True
        return any(not leader.is_draft for leader in self.in_flight.leaders)

    def _make_way(self) -> None:
        """For the next, where all places are taken, or there were no blocks for it: one of a
        tenant that had more and has more of these gives way. Not for one that has to wait for a
        leader: that is put aside."""
        if not self.shares.is_shared:
            return
        while (seq := self.waiting.peek()) is not None and not seq.is_draft:
            other = self._one_to_spare(seq)
            if other is None:
                return
            self.in_flight.begin_step(self.running.values())
            if not self.in_flight.put_aside(seq):
                return self._preempt(other)
            self.waiting.put_aside()

    def _one_to_spare(self, seq: Sequence) -> Sequence | None:
        running = self.running.values()
        if len(running) >= self.max_running:
            return one_to_spare(seq, running, 1, lambda each: 1)
        if seq is self._unfit:
            needed = self.cache.num_blocks_for(len(seq.tokens))
            return one_to_spare(seq, running, needed, lambda each: len(each.blocks))
        return None

    def _prompts(self) -> list[Sequence]:
        """Those that may get a part of this step."""
        prompts = [s for s in self.running.values() if s.num_behind > 1 and not s.is_draft]
        seq = self.waiting.peek() if len(self.running) < self.max_running else None
        if seq is not None and seq is not self._unfit and not seq.is_draft:
            prompts.append(seq)
        return prompts

    def _plan_decodes(self) -> None:
        decodes = [
            seq
            for seq in self.running.values()
            if seq.num_behind == 1 and not (seq.is_draft or seq.next_is_last)
        ]
        for seq in self.portions.take_turns(decodes):
            if seq.state is State.RUNNING and self._has_blocks(seq):
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
            if before is not None and fair_order(before) < fair_order(seq):
                return True
            room = self.portions.room(seq, self._budget)
            if not room:
                return True
            if self.in_flight.put_aside(seq):
                waiting.put_aside()
                continue
            # Each running sequence may need a block soon: a newcomer must not be preempted
            # again by the next of them.
            alone = not running and not seq.is_draft  # a draft breaks no pin
            if not self.cache.admit(seq, spare=len(running), alone=alone):
                # a step under way may hold sources of its copies
                fits_later = running or drafts or self.cache.num_sources_held
                assert fits_later, f"sequence {seq.rid} does not fit an empty pool"
                self._unfit = seq
                return False
            waiting.pop()
            seq.to(State.RUNNING)
            if seq.queue_s is None:
                seq.queue_s = now_s - seq.submitted_s
                self._begun.append(seq.rid)
            running[seq.rid] = seq
            self.in_flight.add(seq)
            self._add_row(seq, min(seq.num_behind, room))
        return True

    def _has_blocks(self, seq: Sequence) -> bool:
        """Room for one more token of a decode, if need be taken from whoever ranks last."""
        cache = self.cache
        if seq.start < len(seq.blocks) * cache.block_size:
            return True

        def alone() -> bool:
            return len(self.running) == 1 and not seq.is_draft

        while not cache.grow(seq, seq.start + 1, alone=alone()):
            last = max(self.running.values(), key=fair_order)
            if last is seq and (seq.num_launched or cache.num_sources_held):
                return False  # until the step under way has landed: it may give blocks back
            self._preempt(last)
            if last is seq:
                return False
        return True

    def _propose(self, speculation: Speculation) -> None:
        """Decodes get more to run, as far as nobody loses anything by it."""
        num_rows = len(self._rows)
        for rid, row in self._rows.items():
            if self._budget and row.sampling is not None and len(row.token_ids) == 1:
                seq = self.running[rid]
                proposed = speculation.propose(seq, num_rows, self._budget)
                proposed = proposed[: self._make_room(seq, len(proposed))]
                if proposed:
                    token_ids = [*row.token_ids, *proposed]
                    self._rows[rid] = replace(row, token_ids=token_ids, num_proposed=len(proposed))
                    self._budget -= len(proposed)

    def _make_room(self, seq: Sequence, num_wanted: int) -> int:
        """How many slots a sequence has after its last token, some of them in new blocks where
        nobody needs those soon."""
        cache, num_tokens = self.cache, len(seq.tokens)
        num_new = cache.num_blocks_for(num_tokens + num_wanted) - len(seq.blocks)
        if num_new > 0:
            counts = cache.counts()
            num_new = min(num_new, counts.free + counts.cached - len(self.running))
            if num_new > 0:
                cache.grow(seq, (len(seq.blocks) + num_new) * cache.block_size)
        return len(seq.blocks) * cache.block_size - num_tokens

    def take_begun(self) -> list[int]:
        """Those that this step's plan is the first to run."""
        begun, self._begun = self._begun, []
        return begun

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
        for seq in sorted((s for s in self.running.values() if s.is_draft), key=fair_order):
            admitting = admitting and self._admit_waiting(now_s, before=seq, drafts=True)
            if self._budget and seq.state is State.RUNNING and not seq.next_is_last:
                if seq.num_behind and self._has_blocks(seq):
                    self._add_row(seq, min(seq.num_behind, self._budget))
            admitting = admitting and num_preemptions == self.num_preemptions
        if not admitting:
            return
        if self._admit_waiting(now_s, drafts=True) or self.running:
            return
        if not self.cache.num_sources_held:
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
            self.portions.take(seq, -len(row.token_ids))
        del self.running[seq.rid]
        self.cache.release(seq)
        seq.lose()
        seq.to(State.PREEMPTED)
        self.waiting.push(seq)
        self.num_preemptions += 1

    def _add_row(self, seq: Sequence, num_tokens: int) -> None:
        tokens = seq.tokens
        start = seq.start
        end = start + num_tokens
        # it is full from the start, of max_tokens 0
        samples = end == len(tokens) + seq.num_unread and not seq.is_full
        self._budget -= num_tokens
        self.portions.take(seq, num_tokens)
        self._rows[seq.rid] = Row(
            seq.rid,
            tokens[start:end] if end <= len(tokens) else [*tokens[start:], UNREAD],
            start,
            seq.blocks,
            seq.sampling if samples else None,
            tokens,
            seq.num_prompt_tokens,
            seq.bans(end),
            seq.reasoning.forced(tokens) if samples and seq.reasoning else None,
            seq.rules,
            seq.prompt_outputs.share(start, end) if seq.prompt_outputs else None,
        )

    def lower_limit(self, num_tokens: int) -> None:
        """Steps have no more tokens from now on."""
        self.max_running = min(self.max_running, num_tokens)
        # a decode is never left out
        self.max_step_tokens = min(self.max_step_tokens, max(num_tokens, len(self.running)))

    # --- a plan is launched, and committed ------------------------------------------------

    def launched(self, row: Row) -> Flight:
        """It runs now: the next plan goes on from there."""
        seq = self.running[row.rid]
        seq.num_launched += len(row.token_ids)
        seq.num_unread += row.sampling is not None
        return Flight(row, seq, seq.num_lost)

    def landed(self, flight: Flight) -> None:
        """It has run: its commit follows."""
        if flight.is_wanted:
            flight.seq.num_launched -= len(flight.row.token_ids)
            flight.seq.num_unread -= flight.row.sampling is not None
