"""Any interleaving of requests gives the answers each would get alone, and leaks nothing."""

from __future__ import annotations

from collections import Counter
from itertools import cycle
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from lmserve.engine.cache.prefix import Pin
from lmserve.engine.plan import Row, StepPlan
from lmserve.engine.policy import fair_order, priority_then_arrival
from lmserve.engine.portions import PORTION
from lmserve.engine.sequence import Sequence, State
from lmserve.engine.speculation.speculation import Speculation
from lmserve.messages import LOWEST, Tenant
from lmserve.sampling import SamplingParams, Thinking
from lmserve.settings import EngineSettings
from tests.engine.paged import Answer, Bench, Free, LaggingRunner, PagedRunner, Prophet, oracle

VOCAB = 5
POISON = 5  # a token of prompts only: the model overflows on it
EOS = (4,)
MAX_MODEL_LEN = 24
THINKING = [Thinking(3, (2, 3)), Thinking(0, (1, 1), start_ids=(0,)), Thinking(1, (4,))]
SAMPLING = st.fixed_dictionaries(
    {
        "max_tokens": st.sampled_from([8, 1, 2, 12, 0]),
        "min_tokens": st.sampled_from([0, 0, 6]),
        "ignore_eos": st.sampled_from([True, False]),
        "stop_token_ids": st.sampled_from([(), (), (1,), (0, 2)]),
        "thinking": st.sampled_from([None, None, None, *THINKING]),
        "logprobs": st.sampled_from([None, 0]),
        "prompt_logprobs": st.sampled_from([None, None, 0]),
        "prompt_logprobs_start": st.sampled_from([0, 2, 7]),
        "pooling": st.sampled_from([None, None, None, None, "mean", "last"]),
        "tell_progress": st.booleans(),
    }
)
PRIORITY = st.sampled_from([0, 1, 0, 1, LOWEST])
TENANTS = [Tenant("a"), Tenant("b", 2.0), Tenant("c", 0.5)]


def ends(row: Row) -> bool:
    """Whether it runs the last of a sequence's tokens."""
    return row.sampling is not None or row.context_len == len(row.history)


class CoreMachine(RuleBasedStateMachine):
    make_runner: type[PagedRunner] = PagedRunner

    @initialize(
        num_blocks=st.sampled_from([6, 8, 10, 14, 2, 20]),
        block_size=st.sampled_from([2, 3, 4, 1]),
        max_batch_size=st.sampled_from([3, 4, 2, 6, 1]),
        max_step_tokens=st.sampled_from([8, 5, 20, 3, 1]),
        prefix_cache=st.sampled_from([True, True, True, False]),
        half_done=st.booleans(),
        proposed=st.sampled_from([(), (True,), (False,), (True, True, False), (True, False)]),
        num_tenants=st.sampled_from([1, 3, 2]),
    )
    def start(
        self,
        num_blocks: int,
        block_size: int,
        max_batch_size: int,
        max_step_tokens: int,
        prefix_cache: bool,
        half_done: bool,
        proposed: tuple[bool, ...],
        num_tenants: int,
    ) -> None:
        self.tenants = TENANTS[:num_tenants]
        runner = self.make_runner(
            num_blocks,
            block_size,
            vocab_size=VOCAB + 1,
            max_model_len=MAX_MODEL_LEN,
            eos_ids=EOS,
            poison=POISON,
        )
        runner.half_done = half_done
        self.config = EngineSettings(
            max_batch_size=max_batch_size,
            max_step_tokens=max_step_tokens,
            prefix_cache=prefix_cache,
        )
        self.bench = Bench(runner, self.config)
        self.core = self.bench.core
        if proposed and not self.core.overlaps:  # tokens that come and others, whatever that costs
            self.core.scheduler.speculation = Speculation(
                3, lambda: Prophet(cycle(proposed), VOCAB), Free()
            )
        self.max_len = self.bench.info.max_model_len
        self.expected: dict[int, Answer] = {}
        self.aborted: set[int] = set()
        self.ended: set[int] = set()
        self.cut: set[int] = set()  # by an update; perhaps not told yet
        self.texts = [[0, 1, 2, 3, 0, 1, 2, 3, 0, 1]]  # beginnings worth sharing
        self.pins: list[Pin] = []
        self.priorities: list[int] = []
        self.tenant_of: list[str] = []
        self.asked: list[tuple[list[int], dict[str, Any]]] = []
        self.idle_steps = 0
        self.left_out: Counter[int] = Counter()  # for how many steps, by rid
        self.admit = self.core.cache.admit
        self.core.cache.admit = self.checked_admit  # type: ignore[method-assign]

    def checked_admit(self, seq: Sequence, **how: Any) -> bool:
        """A newcomer leaves a block to each that runs, and computes no block that one of those
        is computing that comes before it."""
        done = self.admit(seq, **how)
        counts = self.core.cache.counts()
        if done:
            running = self.core.scheduler.running.values()
            assert counts.free + counts.cached >= len(running)
            at = seq.num_computed // self.core.cache.block_size
            end = (at + 1) * self.core.cache.block_size
            for each in running:
                if priority_then_arrival(each) < priority_then_arrival(seq):
                    alike = each.tokens[:end] == seq.tokens[:end] and end <= seq.num_matchable
                    here = each.num_computed // self.core.cache.block_size == at
                    shares = self.config.prefix_cache and each.node is seq.node
                    assert not (alike and here and shares), "a block is computed twice"
        return done

    @rule(data=st.data(), num_requests=st.integers(1, 4))
    def submit(self, data: st.DataObject, num_requests: int) -> None:
        for _ in range(num_requests):
            beginning = data.draw(st.sampled_from(self.texts))
            cut = data.draw(st.integers(0, len(beginning)))
            tail = data.draw(st.lists(st.integers(0, VOCAB - 1), max_size=3))
            if data.draw(st.sampled_from([False, False, False, False, True])):
                tail.append(POISON)
            sampling = data.draw(SAMPLING)
            tenant = data.draw(st.sampled_from(self.tenants))
            self.submit_one([*beginning[:cut], *tail], sampling, data.draw(PRIORITY), tenant)

    @rule(data=st.data(), num_twins=st.integers(2, 5), num_tokens=st.integers(1, 20))
    def submit_twins(self, data: st.DataObject, num_twins: int, num_tokens: int) -> None:
        """One prompt several times at once, as for n > 1; the last tokens may be each one's own."""
        prompt = data.draw(st.lists(st.integers(0, 1), min_size=num_tokens, max_size=num_tokens))
        sampling, priority = data.draw(SAMPLING), data.draw(PRIORITY)
        tenant = data.draw(st.sampled_from(self.tenants))
        for _ in range(num_twins):
            own = data.draw(st.sampled_from([[], [], [], [2], [3, 2], [POISON]]))
            self.submit_one([*prompt, *own], sampling, priority, tenant)

    def submit_one(
        self, prompt: list[int], sampling: dict[str, Any], priority: int, tenant: Tenant
    ) -> None:
        rid = len(self.expected)
        self.priorities.append(priority)
        self.tenant_of.append(tenant.name)
        self.asked.append((prompt, sampling))
        self.bench.submit(rid, prompt, priority, tenant, **sampling)
        chooses = sampling["max_tokens"] > 0 and sampling["pooling"] is None
        fits = 0 < len(prompt) <= self.max_len - chooses
        if fits and POISON in prompt:
            self.expected[rid] = Answer(finish="error")
            self.texts.append([*prompt, 0, 1])
        elif fits:
            self.expected[rid] = oracle(
                prompt,
                SamplingParams(**sampling),
                vocab_size=VOCAB,
                eos_ids=EOS,
                max_model_len=self.max_len,
            )
            self.texts.append(prompt + self.expected[rid].ids)
        else:
            self.expected[rid] = Answer(finish="error")

    @precondition(lambda self: self.expected)
    @rule(data=st.data(), what=st.sampled_from(["abort", "fail", "raise", "pin", "unpin", "clear"]))
    def disturb(self, data: st.DataObject, what: str) -> None:
        rid = data.draw(st.integers(0, len(self.expected) - 1))
        match what:
            case "abort":  # of any request ever seen, and of one never seen
                self.bench.abort(rid, len(self.expected))
                if rid not in self.ended:
                    self.aborted.add(rid)
            case "fail":
                self.bench.runner.failing.add(rid)
            case "raise":
                self.bench.runner.raising.add(rid)
            case "pin":
                self.pins.append(self.core.cache.pin(data.draw(st.sampled_from(self.texts))))
            case "unpin" if self.pins:
                self.core.cache.unpin(self.pins.pop())
            case "clear":
                self.core.cache.clear()

    @precondition(lambda self: self.expected)
    @rule(data=st.data(), max_tokens=st.sampled_from([1, 2, 5, 12, 10**9]))
    def update(self, data: st.DataObject, max_tokens: int) -> None:
        """Of any request ever seen, and of one never seen."""
        rid = data.draw(st.integers(0, len(self.expected)))
        if rid == len(self.expected):
            self.bench.update(rid, max_tokens=max_tokens)
            return
        prompt, sampling = self.asked[rid]
        if sampling["max_tokens"] == 0 or sampling["pooling"] is not None:
            return  # nothing is chosen
        sampling = sampling | {"max_tokens": max_tokens}
        self.bench.update(rid, **sampling)
        if rid in self.ended | self.aborted | self.cut or self.expected[rid].finish == "error":
            return
        said = self.bench.answers[rid]
        if len(said.ids) >= max_tokens:
            self.expected[rid] = Answer(
                ids=list(said.ids),
                finish="length",
                logprobs=list(said.logprobs),
                prompt_logprobs=list(said.prompt_logprobs),
            )
            self.cut.add(rid)
        else:
            self.expected[rid] = oracle(
                prompt,
                SamplingParams(**sampling),
                vocab_size=VOCAB,
                eos_ids=EOS,
                max_model_len=self.max_len,
            )

    @rule(num_steps=st.sampled_from([4, 1, 12]))
    def step(self, num_steps: int) -> None:
        for _ in range(num_steps):
            self.one_step()

    def one_step(self) -> None:
        core = self.core
        before = list(core.scheduler.running.values())
        behind = {seq.rid: 0 if seq.next_is_last else seq.num_behind for seq in before}
        num_preemptions = core.scheduler.num_preemptions
        num_lost = {seq.rid: seq.num_lost for seq in before}
        heard = {rid: answer.num_outputs for rid, answer in self.bench.answers.items()}
        had_work = core.scheduler.has_work
        waiting = list(core.scheduler.waiting._sequences.values())
        aside = core.scheduler.in_flight._aside
        ready = [(leader, num) for leader, num in aside if not self.computes(leader, num)]
        failed = core._before is not None and core._before.launched is None  # lands first
        ranks = {seq.rid: fair_order(seq) for seq in (*before, *waiting)}
        shares = core.scheduler.shares
        served = {seq.rid: seq.share.served for seq in (*before, *waiting)}
        plan = self.bench.step()
        assert not any(key in aside for key in ready), "somebody waits for nobody"
        for (leader, _), followers in aside.items():
            for seq in followers:
                assert priority_then_arrival(leader) < priority_then_arrival(seq)
        rids = [row.rid for row in plan.rows]
        assert len(set(rids)) == len(rids) <= self.config.max_batch_size
        assert plan.num_tokens <= self.config.max_step_tokens
        preempted = [seq for seq in before if seq.num_lost > num_lost[seq.rid]]
        assert len(preempted) == core.scheduler.num_preemptions - num_preemptions
        self.check_preempted(preempted, before, ranks, set(rids) - behind.keys())
        for seq in preempted:
            del self.left_out[seq.rid]
        first = core.scheduler.portions.favoured
        limited: set[int] = set()
        if first is not None:  # perhaps let in by a step that failed, and was run again
            clear = shares.margin / first.share.weight
            least = served.get(first.rid, -shares.burst) + clear
            limited = {rid for rid, num in served.items() if num > least}
        for seq in before:
            if behind[seq.rid] == 1 and seq not in preempted and not seq.is_draft:
                out = self.left_out[seq.rid] + 1 if seq.rid not in rids else 0
                self.left_out[seq.rid] = out
                # a step under way may have the block it needs
                most = core.overlaps + (PORTION - 1 if seq.rid in limited else 0)
                assert out <= most or seq.state is State.FINISHED, "a decode was left out"
        if not failed:
            stayed = {seq.rid: seq for seq in before if seq not in preempted}
            self.check_chunks(plan, stayed, behind, ranks, limited)
        told = any(a.num_outputs > heard[rid] for rid, a in self.bench.answers.items())
        self.idle_steps = self.idle_steps + 1 if had_work and not rids and not told else 0
        assert self.idle_steps < 2 + self.core.overlaps, "work waits and nothing runs"
        self.check_drafts(plan, before, waiting, behind)
        for rid in self.aborted:
            assert self.bench.answers[rid].num_outputs == heard[rid], "an aborted request heard"
        self.check_answers()

    def check_preempted(
        self,
        preempted: list[Sequence],
        before: list[Sequence],
        ranks: dict[int, tuple[int, float, int]],
        newcomers: set[int],
    ) -> None:
        """Who is last, for want of a block; or one whose tenant had more than another's that
        waits, and had more places or blocks."""
        stayed = [ranks[seq.rid] for seq in before if seq not in preempted]
        for seq in preempted if stayed else []:
            # even one alone may have to come back: where it holds blocks below a twin's
            if ranks[seq.rid] < max(stayed):
                first = self.core.scheduler.waiting.peek() if not newcomers else None
                others = newcomers or ({first.rid} if first is not None else set())
                assert any(
                    ranks.get(rid, ranks[seq.rid]) < ranks[seq.rid]
                    and self.tenant_of[rid] != self.tenant_of[seq.rid]
                    for rid in others
                ), "the wrong one was preempted"
        if newcomers and any(not seq.is_draft for seq in preempted):
            gave = {self.tenant_of[seq.rid] for seq in preempted if not seq.is_draft}
            took = {self.tenant_of[rid] for rid in newcomers}
            assert took - gave, "a newcomer takes a block just taken away"

    def computes(self, leader: Sequence, num_tokens: int) -> bool:
        return leader.state is State.RUNNING and leader.num_computed < num_tokens

    def check_drafts(
        self,
        plan: StepPlan,
        before: list[Sequence],
        waiting: list[Sequence],
        behind: dict[int, int],
    ) -> None:
        """They run only where nobody else waits for blocks, a place or a part of the budget."""
        rows = {row.rid: len(row.token_ids) - row.num_proposed for row in plan.rows}
        drafts = [rid for rid in rows if self.priorities[rid] == LOWEST]
        if drafts:
            decodes = {row.rid for row in plan.rows if ends(row) and rows[row.rid] == 1}
            for seq in (*before, *waiting):
                # its last token is being drawn, or it ended with a step that was run again
                at_its_end = behind.get(seq.rid) == 0 or seq.state is State.FINISHED
                assert seq.is_draft or seq.rid in decodes or at_its_end, "a draft before others"
        for seq in before:
            if seq.is_draft and any(not each.is_draft for each in waiting):
                assert seq.state is not State.RUNNING, "a draft keeps others waiting"

    def check_chunks(
        self,
        plan: StepPlan,
        running: dict[int, Sequence],
        behind: dict[int, int],
        ranks: dict[int, tuple[int, float, int]],
        limited: set[int],
    ) -> None:
        """Where the budget ends within a prompt, none that comes after it has a part of it."""
        chunks = {row.rid: len(row.token_ids) for row in plan.rows if behind.get(row.rid) != 1}
        done = {row.rid for row in plan.rows if ends(row)}
        waited = [rid for rid in {*running, *chunks} - done if behind.get(rid) not in (0, 1)]
        for late in waited:
            for rid in chunks:
                same = rid == late or late in limited
                assert same or ranks[rid] < ranks[late], "out of turn"

    def check_answers(self) -> None:
        for rid, answer in self.bench.answers.items():
            expected = self.expected[rid]
            assert answer.ids == expected.ids[: len(answer.ids)]
            if expected.finish != "error":
                for name in ("logprobs", "prompt_logprobs"):
                    heard = getattr(answer, name)
                    assert heard == getattr(expected, name)[: len(heard)]
            if answer.finish is None:
                continue
            told = rid in self.ended
            self.ended.add(rid)
            if answer.finish == "abort":
                assert self.priorities[rid] == LOWEST
                assert told or self.core.cache.counts().pinned or self.core.kv.has_jobs
            elif answer.finish == "error":
                broken = self.bench.runner.raising | self.bench.runner.failing
                assert expected.finish == "error" or rid in broken
                assert answer.error and "\n" not in answer.error
            else:
                assert answer.ids == expected.ids
                assert answer.finish == expected.finish
                assert answer.stop_token_id == expected.stop_token_id
                if rid not in self.cut:
                    for name in ("logprobs", "prompt_logprobs", "embedding", "num_prompt_run"):
                        assert getattr(answer, name) == getattr(expected, name)

    @invariant()
    def the_queue_is_no_longer_than_it_has_to_be(self) -> None:
        waiting = self.core.scheduler.waiting
        assert waiting._num_entries <= 2 * len(waiting) + 64

    @invariant()
    def blocks_are_conserved(self) -> None:
        self.core.cache.check()
        counts = self.core.cache.counts()
        assert counts.free + counts.cached + counts.pinned + counts.held == counts.total

    @invariant()
    def no_block_has_two_writers(self) -> None:
        pool = self.core.cache.pool
        writable: set[int] = set()
        for seq in self.core.scheduler.running.values():
            own = seq.blocks[seq.num_computed // self.core.cache.block_size :]
            assert not any(pool.in_tree[block] or pool.refs[block] != 1 for block in own)
            assert writable.isdisjoint(own)
            writable.update(own)

    def teardown(self) -> None:
        if not hasattr(self, "core"):
            return
        for _ in range(20_000):
            if not self.core.has_work():
                break
            self.one_step()
        assert not self.core.has_work(), "the engine does not come to an end"
        for rid, answer in self.bench.answers.items():
            assert answer.finish is not None or rid in self.aborted, f"{rid} was never told"
        assert self.core.cache.counts().held == 0
        for pin in self.pins:
            self.core.cache.unpin(pin)
        self.core.cache.clear()
        self.core.cache.check()
        assert self.core.cache.counts().free == self.bench.runner.num_blocks


class OverlapMachine(CoreMachine):
    """Each step is launched before the one before it is read."""

    make_runner = LaggingRunner

    @rule()
    def catch_up(self) -> None:
        """The device is fast, for once."""
        assert isinstance(self.bench.runner, LaggingRunner)
        self.bench.runner.catch_up()


MACHINES = pytest.mark.parametrize("machine", [CoreMachine, OverlapMachine])


@MACHINES
def test_any_interleaving_gives_each_request_its_own_answer(machine: type[CoreMachine]) -> None:
    run_state_machine_as_test(
        machine, settings=settings(max_examples=60, stateful_step_count=25, deadline=None)
    )


@pytest.mark.slow
@pytest.mark.timeout(900)
@MACHINES
def test_any_interleaving_gives_each_request_its_own_answer_for_long(
    machine: type[CoreMachine],
) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=1500,
            stateful_step_count=60,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
