"""The engine: plan, run, commit, one step after another.

Whoever hosts it (`lmserve.bridge.host`) calls `handle` and `step` in turn, from one thread.
Aborts are therefore applied before a step is planned, and again before the next: an aborted
request gets nothing more.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import nullcontext
from time import perf_counter

from lmserve.engine.advance import advance, refused, told
from lmserve.engine.cache.manager import CacheManager
from lmserve.engine.grammars import Grammars, Masks
from lmserve.engine.kv_store import KVStore
from lmserve.engine.limits import check_prompt, check_sampling
from lmserve.engine.plan import StepPlan, StepResult
from lmserve.engine.read_ahead import begin_reading
from lmserve.engine.recovery import Recovery
from lmserve.engine.scheduler import Scheduler
from lmserve.engine.sequence import Sequence
from lmserve.engine.speculation.speculation import Speculation
from lmserve.engine.stats import StatsKeeper
from lmserve.engine.step_runner import (
    StepRunner,
    default_batch_size,
    default_step_tokens,
    info_of,
)
from lmserve.engine.steps import Step, Steps
from lmserve.engine.trace import OFF, Trace, open_trace
from lmserve.engine.verbs import Verbs, one_line
from lmserve.errors import InvalidField, RequestError
from lmserve.messages import (
    Abort,
    Begun,
    ControlReply,
    EngineInfo,
    SequenceOutput,
    StepOutput,
    Submit,
    ToEngine,
    ToServer,
    Update,
    unpack_ids,
)
from lmserve.settings import EngineSettings

logger = logging.getLogger(__name__)


class EngineCore:
    """Every submitted request gets exactly one output with `finish` set, unless aborted."""

    def __init__(self, settings: EngineSettings, runner: StepRunner | None = None):
        self.settings = settings
        self.wake: Callable[[], None] = _no_one_waits  # set by the host, as `tell` is
        self.tell: Callable[[list[ToServer]], None] = _no_one_hears
        self.trace: Trace = OFF
        self._runner = runner
        self._ended: list[SequenceOutput] = []  # beside any step; told by the next
        self._before: Step | None = None  # launched, and not read yet

    @staticmethod
    def preload() -> None:
        """What is slow to import."""
        from lmserve.engine import loader  # noqa: F401

    def load(self, progress: Callable[[str], None]) -> EngineInfo:
        """Loads the model. Raises SetupError with one line for the user."""
        self.trace = open_trace(self.settings.profile)
        if self._runner is None:
            begin_reading(self.settings)
            from lmserve.engine.loader import load_runner  # torch, from here on

            self._runner = load_runner(self.settings, progress)
        runner, assets = self._runner, self._runner.assets
        runner.trace = self.trace
        assert assets is not None, "a served model has its tokenizer"
        # A sequence that has the whole pool to itself must fit.
        self.max_model_len = min(runner.max_model_len, runner.num_blocks * runner.block_size)
        self.vocab_size = runner.vocab_size
        self.eos_ids = frozenset(i for i in assets.eos_token_ids if i < runner.vocab_size)
        self.cache = CacheManager(
            runner.num_blocks, runner.block_size, prefix_cache=self.settings.prefix_cache
        )
        self.scheduler = Scheduler(
            self.cache,
            max_batch_size=self.settings.max_batch_size or default_batch_size(runner.device),
            max_step_tokens=self.settings.max_step_tokens or default_step_tokens(runner.device),
            fair=self.settings.fair,
            speculation=(
                Speculation(self.settings.speculation_tokens)
                if self.settings.speculation == "ngram"
                else None
            ),
        )
        self.steps = Steps(
            runner,
            Recovery(runner.is_out_of_memory, runner.release_cached, self.scheduler.lower_limit),
            self.scheduler.running,
        )
        self.overlaps = runner.overlaps and self.scheduler.speculation is None
        self.stats = StatsKeeper(self.scheduler)
        self.kv = KVStore(
            runner, self.cache, num_spare=lambda: len(self.scheduler.running), wake=self.wake
        )
        self.verbs = Verbs(self.cache, self.kv, self.stats)
        self.grammars = Grammars(
            str(assets.tokenizer_file), runner.vocab_size, sorted(self.eos_ids), self.wake
        )
        return info_of(
            runner,
            assets,
            max_model_len=self.max_model_len,
            max_batch_size=self.scheduler.max_running,
            deterministic=self.settings.deterministic,
        )

    def close(self) -> None:
        if self._runner is not None:
            self.kv.close()
            self.grammars.close()
        self._runner = self._before = None
        self.trace.close()
        self.trace = OFF

    # --- beside the steps -----------------------------------------------------------------

    def has_chores(self) -> bool:
        if self.kv.has_chores() or self.grammars.has_ready:
            return True
        return self._runner is not None and self._runner.wants_chore(idle=not self.has_work())

    def do_chores(self) -> list[ControlReply]:
        for seq in self.grammars.take_ready():
            self._admit(seq)
        if self._runner is not None and self._runner.wants_chore(idle=not self.has_work()):
            with self.trace.span("capture"):
                self._runner.do_chore()
        return self.kv.do_chores() if self.kv.has_chores() else []

    # --- one step -------------------------------------------------------------------------

    def has_work(self) -> bool:
        return self.scheduler.has_work or bool(self._ended) or self._before is not None

    def step(self) -> StepOutput:
        """Runs a step; where the runner overlaps, launches one and tells of the one before."""
        with self.trace.span("step"):
            outputs, self._ended = self._ended, []
            if self._before is not None and self._before.launched is None:
                outputs += self._land(self._before)  # it failed: nothing is launched on top of it
            with self.trace.span("schedule"):
                plan = self.scheduler.schedule(perf_counter())
            if begun := self.scheduler.take_begun():
                self.tell([Begun(begun)])
            for seq in self.scheduler.take_dropped():
                outputs.append(SequenceOutput(seq.rid, b"", finish="abort"))
            outputs += self._run_ahead(plan) if self.overlaps else self._run(plan)
            stats = self.stats.count_step(plan.num_tokens)
            self.trace.stepped(plan, outputs, stats)
        return StepOutput(outputs, stats)

    def _run(self, plan: StepPlan) -> list[SequenceOutput]:
        step = self._begin(plan)
        if step is None:
            return []
        step.masks = self._masks(plan)
        speculation = self.scheduler.speculation
        with nullcontext() if speculation is None else speculation.timed(plan):
            self.steps.launch(step)
            self.steps.draw(step)
            result = self.steps.read(step)
        return self._commit(step, result)

    def _run_ahead(self, plan: StepPlan) -> list[SequenceOutput]:
        """While the device computes this step, the tokens of the one before are told; what they
        decide, this step's drawing waits for."""
        before, step = self._before, self._begin(plan)
        if step is not None:
            self.steps.launch(step)
        outputs = [] if before is None else self._land(before, after=step)
        if step is not None:
            step.masks = self._masks(plan)
            self.steps.draw(step)
        self._before = step
        return outputs

    def _land(self, step: Step, after: Step | None = None) -> list[SequenceOutput]:
        self._before = None
        return self._commit(step, self.steps.read(step, after))

    def _begin(self, plan: StepPlan) -> Step | None:
        """None where there is nothing to run."""
        if not (plan.rows or plan.copies or plan.scrubs):
            self.cache.end_step(plan)
            return None
        return Step(plan, [self.scheduler.launched(row) for row in plan.rows])

    def _masks(self, plan: StepPlan) -> Masks | None:
        """Begins those of the rows that have a grammar. All their tokens are read."""
        with self.trace.span("masks"):
            constraints = {
                row.rid: grammar
                for row in plan.rows
                if row.sampling is not None
                and row.sampling.grammar is not None
                and (seq := self.scheduler.running.get(row.rid)) is not None
                and (grammar := seq.grammar) is not None
            }
            return self.grammars.masks(constraints) if constraints else None

    def _commit(self, step: Step, result: StepResult) -> list[SequenceOutput]:
        outputs = []
        with self.trace.span("commit"):
            self.cache.end_step(step.plan)
            for flight in step.flights:
                self.scheduler.landed(flight)
                output = advance(self.scheduler, flight, result)
                if output is not None:
                    outputs.append(output)
        return outputs

    # --- messages -------------------------------------------------------------------------

    def handle(self, messages: list[ToEngine]) -> list[ControlReply]:
        replies: list[ControlReply] = []
        for message in messages:
            if isinstance(message, Submit):
                self._submit(message)
            elif isinstance(message, Update):
                self._update(message)
            elif isinstance(message, Abort):
                self._abort(message.rids)
            else:
                replies += self.verbs.run(message)
        return replies

    def _submit(self, submit: Submit) -> None:
        self.trace.submitted(submit.rid)
        try:
            ids = unpack_ids(submit.token_ids)
            self._validate(submit, ids)
            seq = Sequence(
                submit.rid,
                ids,
                submit.sampling,
                eos_ids=self.eos_ids,
                max_model_len=self.max_model_len,
                priority=submit.priority,
                tenant=submit.tenant,
                submitted_s=perf_counter(),
            )
            grammar = submit.sampling.grammar
            is_held = grammar is not None and self.grammars.hold(seq, grammar)
        except Exception as error:
            text = error.message if isinstance(error, RequestError) else one_line(error)
            self._ended.append(SequenceOutput(submit.rid, b"", finish="error", error=text))
        else:
            if not is_held:
                self._admit(seq)

    def _admit(self, seq: Sequence) -> None:
        if seq.grammar is not None and seq.grammar.error is not None:
            self._ended.append(told(seq, refused(seq, seq.grammar.error)))
        else:
            self.scheduler.add(seq)

    def _validate(self, submit: Submit, ids: list[int]) -> None:
        """Refuses what cannot be run. The service checks all this first, with better words."""
        if self._get(submit.rid) is not None:
            raise RequestError(f"request id {submit.rid} is in use")
        check_prompt(ids, submit.sampling, self.vocab_size, self.max_model_len)
        check_sampling(submit.sampling, self.vocab_size)

    def _get(self, rid: int) -> Sequence | None:
        return self.scheduler.get(rid) or self.grammars.held(rid)

    def _finish(self, seq: Sequence) -> None:
        if self.grammars.held(seq.rid) is None:
            self.scheduler.finish(seq)
        else:
            self.grammars.drop(seq.rid)

    def _update(self, update: Update) -> None:
        seq = self._get(update.rid)
        if seq is None:
            return
        try:
            check_sampling(update.sampling, self.vocab_size)
        except InvalidField as error:
            self._finish(seq)
            output = SequenceOutput(seq.rid, b"", finish="error", error=error.message)
            self._ended.append(told(seq, output))
            return
        seq.use(update.sampling)
        if seq.is_full and update.sampling.pooling is None:
            self._finish(seq)
            self._ended.append(told(seq, SequenceOutput(seq.rid, b"", finish="length")))

    def _abort(self, rids: list[int]) -> None:
        self.trace.aborted(rids)
        for rid in rids:
            seq = self._get(rid)
            if seq is not None:
                self._finish(seq)
        if self._ended:
            gone = set(rids)
            self._ended = [output for output in self._ended if output.rid not in gone]


def _no_one_waits() -> None:
    pass


def _no_one_hears(messages: list[ToServer]) -> None:
    pass
