"""A runner whose KV is a hash of the whole token history, one in each slot of its blocks.

The next token depends on everything read back through the block table, so a slot that holds
the wrong token's KV changes the answer, and says so at once. It also finds plans that break
the contract of `lmserve.engine.plan`; the bench asserts that there are none.

A poison token stands for a model that overflows: its slot holds POISON, and POISON fails every
row that has it anywhere in its blocks, as 0 times NaN would through the mask.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Iterable
from collections.abc import Sequence as Tokens
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lmserve.engine.core import EngineCore
from lmserve.engine.plan import UNREAD, BlockCopy, Row, StepPlan, StepResult
from lmserve.messages import (
    NOBODY,
    Abort,
    Control,
    ControlReply,
    SequenceOutput,
    Submit,
    Tenant,
    TokenLogprob,
    Update,
    pack_ids,
    unpack_ids,
)
from lmserve.sampling import SamplingParams, Thinking
from lmserve.settings import EngineSettings
from lmserve.weights.base import TokenizerAssets

POISON = -1
SLOT = struct.Struct("<q")  # one token's KV in a file


def chain(tokens: Tokens[int], before: int = 0) -> list[int]:
    """The KV of each token: a hash of it and of all before it."""
    kv = []
    for token in tokens:
        before = hash((before, token)) & 0xFFFFFFFF
        kv.append(before)
    return kv


def choose(kv: int, vocab_size: int, banned: Tokens[int] = ()) -> int:
    allowed = [token for token in range(vocab_size) if token not in banned]
    return allowed[kv % len(allowed)]


def logprob(token: int, before: int) -> TokenLogprob:
    """What is told of a token depends on all before it."""
    return TokenLogprob(token, -float(before % 1009 + token))


def state_of(kv: int) -> list[float]:
    return [float(kv % 1009), float(kv % 13)]


class PagedMemory:
    """The KV slots, with the order of events the plan promises: copies, reads, writes."""

    def __init__(self, num_blocks: int, block_size: int):
        self.block_size = block_size
        self.blocks: list[list[int | None]] = [[None] * block_size for _ in range(num_blocks)]

    def scrub(self, blocks: Tokens[int]) -> None:
        for block in blocks:
            self.blocks[block] = [None] * self.block_size

    def poisoned(self, table: Tokens[int]) -> bool:
        return any(POISON in self.blocks[block] for block in table)

    def copy(self, copies: Tokens[BlockCopy]) -> None:
        read = [(c.target, self.blocks[c.source][: c.num_tokens]) for c in copies]
        for target, kv in read:
            self.blocks[target][: len(kv)] = kv

    def read(self, table: Tokens[int], num_tokens: int) -> list[int | None]:
        size = self.block_size
        return [self.blocks[table[i // size]][i % size] for i in range(num_tokens)]

    def write(self, table: Tokens[int], start: int, kv: Tokens[int]) -> None:
        for i, value in enumerate(kv, start):
            self.blocks[table[i // self.block_size]][i % self.block_size] = value


class PagedStep:
    """Computed at once, or in its turn."""

    def __init__(self, runner: PagedRunner, plan: StepPlan):
        self._runner = runner
        self.plan = plan
        self._kv: dict[int, list[int]] | None = None
        self._rows: Tokens[Row] = ()
        self._result: StepResult | None = None
        self.error: Exception | None = None
        self.is_stale = False

    def compute(self) -> None:
        self._kv = self._runner.compute(self.plan)

    def draw(self, rows: Tokens[Row], masks: object) -> None:
        assert [row.rid for row in rows] == [row.rid for row in self.plan.rows]
        self._rows = [*rows]

    def run(self) -> None:
        """As the device does, in the order of launching."""
        try:
            if self._kv is None:
                self.compute()
            assert self._kv is not None
            self._result = self._runner.sample(self._rows, self._kv)
        except Exception as error:
            self.error = error

    def result(self) -> StepResult:
        self._runner.run_until(self)
        if self.error is not None:
            raise self.error
        assert self._result is not None
        return self._result


class PagedRunner:
    overlaps = False
    model_path = "paged"
    architecture = "paged"
    num_parameters = hidden_size = 0
    kv_cache_bytes = 0
    dtype = device = attention = weights = "none"
    kv_token_bytes = SLOT.size

    def __init__(
        self,
        num_blocks: int = 64,
        block_size: int = 4,
        *,
        vocab_size: int = 50,
        max_model_len: int = 100,
        eos_ids: tuple[int, ...] = (),
        poison: int | None = None,
    ):
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.vocab_size = vocab_size
        self.max_model_len = max_model_len
        self.assets = TokenizerAssets(Path("tokenizer.json"), eos_token_ids=eos_ids)
        self.memory = PagedMemory(num_blocks, block_size)
        self.poison = poison
        self.plans: list[StepPlan] = []
        self.violations: list[str] = []  # not raised: the engine outlives a runner that raises
        self.raising: set[int] = set()  # a plan with one of these rows raises as a whole
        self.failing: set[int] = set()  # these rows fail alone
        self.half_done = False  # what raises has made its copies and written before
        self.drawn: dict[int, int] = {}  # the last token of each row
        self.broken: set[int] = set()  # what is computed of these nobody wants

    def launch(self, plan: StepPlan) -> PagedStep:
        self.plans.append(plan)
        self._check(plan)
        step = PagedStep(self, plan)
        step.compute()
        return step

    def compute(self, plan: StepPlan) -> dict[int, list[int]]:
        """The KV of each row, which is in its blocks now."""
        raising = self.raising.intersection(row.rid for row in plan.rows)
        if raising and not self.half_done:
            raise RuntimeError("injected\nsecond line")
        self.memory.scrub(plan.scrubs)
        self.memory.copy(plan.copies)
        kv = {row.rid: self._kv(row) for row in plan.rows}
        for row in plan.rows:
            if row.rid not in self.failing:
                self.memory.write(row.blocks, row.start, kv[row.rid])
        if raising:
            raise RuntimeError("injected\nsecond line")
        return kv

    def wants_chore(self, *, idle: bool) -> bool:
        return False

    def do_chore(self) -> None:
        raise AssertionError("there is none")

    def is_out_of_memory(self, error: BaseException) -> bool:
        return isinstance(error, MemoryError)

    def release_cached(self) -> None:
        pass

    def run_until(self, step: PagedStep) -> None:
        step.run()

    def is_poisoned(self, row: Row) -> bool:
        return self.memory.poisoned(row.blocks)

    def kv_fingerprint(self) -> str:
        return "paged"

    def read_kv(self, blocks: Tokens[int], num_tokens: int) -> memoryview:
        kv = self.memory.read(blocks, num_tokens)
        self._expect(None not in kv and POISON not in kv, "a slot is saved that was not written")
        return memoryview(b"".join(SLOT.pack(value or 0) for value in kv))

    def write_kv(self, blocks: Tokens[int], num_tokens: int, data: bytearray) -> None:
        self._expect(len(data) == num_tokens * SLOT.size, "other bytes than those of the tokens")
        self.memory.scrub(blocks)
        self.memory.write(blocks, 0, [value for (value,) in SLOT.iter_unpack(data)])

    def sample(self, rows: Tokens[Row], kv: dict[int, list[int]]) -> StepResult:
        result = StepResult()
        for row in rows:
            if row.rid in self.failing:
                result.errors[row.rid] = "injected"
            elif self.is_poisoned(row):
                result.errors[row.rid] = "poisoned"
            if row.rid in result.errors:
                self.broken.add(row.rid)
                continue
            if row.prompt is not None:
                self._tell(row, kv[row.rid], result)
            if row.sampling is not None:
                self._draw(row, kv[row.rid], result)
        return result

    def _draw(self, row: Row, kv: list[int], result: StepResult) -> None:
        banned = row.banned_ids if self.poison is None else (*row.banned_ids, self.poison)
        befores = [kv[len(place.token_ids) - 1] for place in row.places]
        tokens = [choose(before, self.vocab_size, banned) for before in befores]
        tokens = row.kept(tokens if row.forced is None else [row.forced])
        result.tokens[row.rid] = tokens
        self.drawn[row.rid] = tokens[-1]
        if row.sampling is not None and row.sampling.logprobs is not None:
            told = [logprob(token, before) for token, before in zip(tokens, befores, strict=False)]
            result.logprobs[row.rid] = told

    def _tell(self, row: Row, kv: list[int], result: StepResult) -> None:
        """Of position p the row has its KV at p - start."""
        assert row.prompt is not None
        if row.prompt.scored:
            result.prompt_logprobs[row.rid] = [
                logprob(row.history[at], kv[at - 1 - row.start]) for at in row.prompt.scored
            ]
        if row.prompt.pooled:
            pooled = [state_of(kv[at - row.start]) for at in row.prompt.pooled]
            result.pooled[row.rid] = np.array(pooled).sum(0)

    def _kv(self, row: Row) -> list[int]:
        read = self.memory.read(row.blocks, row.start)
        before = chain(row.history[: row.start])
        self._expect(
            read == before or row.rid in self.broken,
            f"row {row.rid} reads foreign KV {row} {read} {before} {len(self.plans)}",
        )
        # of one that failed there is none: whatever comes of it is dropped
        drawn = self.drawn.get(row.rid, 0)
        tokens = [drawn if token == UNREAD else token for token in row.token_ids]
        kv = chain(tokens, before[-1] if before else 0)
        return [
            POISON if token == self.poison else value
            for token, value in zip(tokens, kv, strict=True)
        ]

    def _expect(self, holds: bool, what: str) -> None:
        if not holds:
            self.violations.append(what)

    def _check(self, plan: StepPlan) -> None:
        written: set[int] = set()
        for row in plan.rows:
            name, end = f"row {row.rid}", row.context_len
            own_end = end - row.num_proposed
            self._expect(bool(row.token_ids), f"{name} is empty")
            unread = [UNREAD] if row.is_unread else []
            self._expect(not unread or self.overlaps, f"{name} runs a token that nobody has")
            self._expect(
                [*row.token_ids] == [*row.history[row.start : own_end], *unread, *row.proposed],
                f"{name} runs other tokens than its own",
            )
            self._expect(end <= len(row.blocks) * self.block_size, f"{name} has too few blocks")
            self._expect(
                own_end == len(row.history) + len(unread) if row.sampling else not row.num_proposed,
                f"{name} samples before its end",
            )
            if row.prompt is not None:
                told = row.prompt.scored or row.prompt.pooled
                self._expect(bool(told), f"{name} has an empty share of its prompt")
                self._expect(
                    set(row.prompt.scored) <= set(range(row.start + 1, end + 1)),
                    f"{name} tells of tokens whose beginning it does not run",
                )
                self._expect(
                    set(row.prompt.pooled) <= set(range(row.start, end)),
                    f"{name} pools what it does not run",
                )
            first, last = row.start // self.block_size, (end - 1) // self.block_size
            for block in row.blocks[first : last + 1]:
                self._expect(block not in written, f"block {block} is written by two rows")
                written.add(block)
        sources = {copy.source for copy in plan.copies}
        self._expect(written.isdisjoint(sources), "the source of a copy is written")
        for row in plan.rows:
            others = row.blocks[: row.start // self.block_size]
            self._expect(written.isdisjoint(others), f"row {row.rid} reads what is written")
            zeroed = set(plan.scrubs) - {copy.target for copy in plan.copies}
            self._expect(zeroed.isdisjoint(others), "a read block is zeroed")


class LaggingRunner(PagedRunner):
    """Launches without computing: that is done when it has to be, in the order of launching. What
    lies beyond a row's context, it does not read: a block may be given out while a step that was
    launched before still writes it."""

    overlaps = True

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._queue: deque[PagedStep] = deque()
        self._failed: PagedStep | None = None  # which nobody has read yet

    def launch(self, plan: StepPlan) -> PagedStep:
        self.plans.append(plan)
        self._check(plan)
        step = PagedStep(self, plan)
        step.is_stale = self._failed is not None
        self._queue.append(step)
        return step

    def run_until(self, step: PagedStep) -> None:
        while step in self._queue:
            self._run_next()
        if self._failed is step:
            self._failed = None

    def _run_next(self) -> None:
        step = self._queue.popleft()
        before = set(self.broken)
        if step.is_stale:  # what it was launched on has failed: both will be run again
            self.broken |= {row.rid for row in step.plan.rows}
        step.run()
        if step.is_stale:
            self.broken = before
        if step.error is not None:
            self._failed = self._failed or step
            for each in self._queue:
                each.is_stale = True

    def is_poisoned(self, row: Row) -> bool:
        return POISON in self.memory.read(row.blocks, row.context_len)

    def catch_up(self) -> None:
        """All that was launched."""
        while self._queue:
            self._run_next()

    def read_kv(self, blocks: Tokens[int], num_tokens: int) -> memoryview:
        self.catch_up()
        return super().read_kv(blocks, num_tokens)

    def write_kv(self, blocks: Tokens[int], num_tokens: int, data: bytearray) -> None:
        self.catch_up()
        super().write_kv(blocks, num_tokens, data)


@dataclass(slots=True)
class Answer:
    ids: list[int] = field(default_factory=list)
    finish: str | None = None
    stop_token_id: int | None = None
    error: str | None = None
    num_cached_tokens: int = 0
    num_outputs: int = 0
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)
    embedding: list[float] | None = None
    num_prompt_run: int = 0

    def add(self, output: SequenceOutput) -> None:
        assert self.finish is None, f"request {output.rid} heard more after its end"
        self.ids += unpack_ids(output.token_ids)
        self.finish = output.finish
        self.stop_token_id = output.stop_token_id
        self.error = output.error
        assert self.num_outputs == 0 or output.num_cached_tokens == 0
        self.num_cached_tokens += output.num_cached_tokens
        self.num_outputs += 1
        self.logprobs += output.logprobs or []
        self.prompt_logprobs += output.prompt_logprobs or []
        if output.embedding is not None:
            self.embedding = np.frombuffer(output.embedding, "<f4").tolist()
        if output.num_prompt_run is not None:
            assert output.num_prompt_run > self.num_prompt_run
            self.num_prompt_run = output.num_prompt_run


def oracle(
    prompt: Tokens[int],
    sampling: SamplingParams,
    *,
    vocab_size: int = 50,
    eos_ids: tuple[int, ...] = (),
    max_model_len: int = 100,
) -> Answer:
    """What the answer has to be: one request, no cache, no batch."""
    tokens, answer = list(prompt), prompt_told(prompt, sampling)
    if answer.embedding is not None or sampling.max_tokens == 0:
        answer.finish = "length" if answer.embedding is None else "stop"
    eos = set() if sampling.ignore_eos else set(eos_ids)
    while answer.finish is None:
        early = len(answer.ids) < sampling.min_tokens
        banned = {*eos_ids, *sampling.stop_token_ids} if early else set()
        token = choose(chain(tokens)[-1], vocab_size, sorted(banned))
        forced = sampling.thinking and forced_by(sampling.thinking, answer.ids)
        token = token if forced is None else forced
        if sampling.logprobs is not None:
            answer.logprobs.append(logprob(token, chain(tokens)[-1]))
        tokens.append(token)
        answer.ids.append(token)
        if token in eos.union(sampling.stop_token_ids) and not early:
            answer.finish, answer.stop_token_id = "stop", token
        elif len(answer.ids) == sampling.max_tokens or len(tokens) == max_model_len:
            answer.finish = "length"
    return answer


def prompt_told(prompt: Tokens[int], sampling: SamplingParams) -> Answer:
    """All that is to be told of the prompt alone."""
    answer, kv = Answer(), chain(prompt)
    if sampling.prompt_logprobs is not None:
        wanted = range(max(1, sampling.prompt_logprobs_start), len(prompt))
        answer.prompt_logprobs = [logprob(prompt[at], kv[at - 1]) for at in wanted]
    if sampling.pooling is not None:
        states = np.array([state_of(each) for each in kv])
        pooled = states[-1] if sampling.pooling == "last" else states.sum(0) / len(prompt)
        answer.embedding = pooled.astype("<f4").tolist()
    if sampling.tell_progress:
        answer.num_prompt_run = len(prompt)
    return answer


def forced_by(thinking: Thinking, output: list[int]) -> int | None:
    """The slow, obvious budget: every place of both marks is looked for again."""
    start, end = list(thinking.start_ids), list(thinking.end_ids)
    begins = [at for at in range(len(output) + 1) if output[at - len(start) : at] == start]
    if not start:
        begins = [0]
    if not begins or len(output) - begins[0] < thinking.max_tokens:
        return None
    thought = output[begins[0] :]
    if any(thought[at : at + len(end)] == end for at in range(len(thought))):
        return None
    begun = [n for n in range(len(end)) if n == 0 or thought[-n:] == end[:n]]
    return end[begun[-1]]


class Prophet:
    """Proposes what comes where nothing is banned, and something else where `right` says False."""

    def __init__(self, right: Iterable[bool], vocab_size: int = 50):
        self._right = iter(right)
        self._vocab_size = vocab_size

    def propose(self, tokens: Tokens[int], most: int) -> list[int]:
        text = list(tokens)
        for _ in range(most):
            token = choose(chain(text)[-1], self._vocab_size)
            text.append(token if next(self._right) else (token + 1) % self._vocab_size)
        return text[len(tokens) :]


class Free:
    """Costs of an engine for which more tokens cost nothing: as many are proposed as may be."""

    def add(self, num_rows: int, num_tokens: int, seconds: float) -> None:
        pass

    def share(self, num_rows: int) -> float:
        return 0.0


class Inline(Executor):
    """The helper thread's work, done on the spot."""

    def submit(self, call: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(call(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


class Bench:
    """A core over a paged runner, and what each request heard."""

    def __init__(self, runner: PagedRunner | None = None, settings: EngineSettings | None = None):
        self.runner = runner or PagedRunner()
        self.core = EngineCore(settings or EngineSettings(), self.runner)
        self.info = self.core.load(lambda stage: None)
        self.core.kv.executor = Inline()
        self.answers: dict[int, Answer] = {}

    def submit(
        self,
        rid: int,
        prompt: Tokens[int],
        priority: int = 0,
        tenant: Tenant = NOBODY,
        **sampling: Any,
    ) -> Answer:
        self.answers[rid] = Answer()
        params = SamplingParams(**sampling)
        assert self.core.handle([Submit(rid, pack_ids(prompt), params, priority, tenant)]) == []
        return self.answers[rid]

    def update(self, rid: int, **sampling: Any) -> None:
        assert self.core.handle([Update(rid, SamplingParams(**sampling))]) == []

    def abort(self, *rids: int) -> None:
        assert self.core.handle([Abort(list(rids))]) == []

    def control(self, verb: str, **args: Any) -> ControlReply | None:
        """None where a chore will reply."""
        replies = self.core.handle([Control(7, verb, args)])
        assert len(replies) <= 1
        return replies[0] if replies else None

    def finish_chores(self) -> list[ControlReply]:
        """Does all, without a step; files are written and read on the spot."""
        replies = []
        while self.core.has_chores():
            replies += self.core.do_chores()
            self.core.cache.check()
            assert self.runner.violations == []
        assert not self.core.kv.has_jobs
        return replies

    def save(self, tokens: Tokens[int], path: Path) -> ControlReply:
        assert self.control("save", token_ids=pack_ids(tokens), path=str(path)) is None
        (reply,) = self.finish_chores()
        return reply

    def restore(self, tokens: Tokens[int], path: Path) -> ControlReply:
        assert self.control("restore", token_ids=pack_ids(tokens), path=str(path)) is None
        (reply,) = self.finish_chores()
        return reply

    def step(self) -> StepPlan:
        before = len(self.runner.plans)
        for output in self.core.step().outputs:
            self.answers[output.rid].add(output)
        self.core.cache.check()
        assert not self.runner.violations, self.runner.violations
        if self.core.overlaps:
            return self.core._before.plan if self.core._before is not None else StepPlan([])
        return self.runner.plans[before] if len(self.runner.plans) > before else StepPlan([])

    def drain(self, max_steps: int = 1000) -> None:
        for _ in range(max_steps):
            if not self.core.has_work():
                break
            self.step()
        assert not self.core.has_work(), "the engine does not come to an end"
        assert self.core.cache.counts().held == 0
