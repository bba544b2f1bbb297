"""The engine: plan, run, commit, one step after another.

Whoever hosts it (`lmserve.bridge.host`) calls `handle` and `step` in turn, from one thread.
Aborts are therefore applied before a step is planned, and again before the next: an aborted
request gets nothing more.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from time import perf_counter

from lmserve.engine.cache.manager import CacheManager
from lmserve.engine.grammars import Grammars
from lmserve.engine.kv_store import KVStore
from lmserve.engine.limits import check_prompt, check_sampling
from lmserve.engine.plan import NONE_LEFT, Row, StepPlan, StepResult
from lmserve.engine.scheduler import Scheduler
from lmserve.engine.sequence import Sequence
from lmserve.engine.stats import StatsKeeper
from lmserve.engine.step_runner import StepRunner, info_of
from lmserve.engine.verbs import Verbs, one_line
from lmserve.errors import InvalidField, RequestError
from lmserve.messages import (
    Abort,
    ControlReply,
    EngineInfo,
    SequenceOutput,
    StepOutput,
    Submit,
    ToEngine,
    Update,
    pack_ids,
    unpack_ids,
)
from lmserve.settings import EngineSettings

logger = logging.getLogger(__name__)


class EngineCore:
    """Every submitted request gets exactly one output with `finish` set, unless aborted."""

    def __init__(self, settings: EngineSettings, runner: StepRunner | None = None):
        self.settings = settings
        self.wake: Callable[[], None] = _no_one_waits  # set by the host
        self._runner = runner
        self._ended: list[SequenceOutput] = []  # beside any step; told by the next

    def load(self, progress: Callable[[str], None]) -> EngineInfo:
        """Loads the model. Raises SetupError with one line for the user."""
        if self._runner is None:
            from lmserve.engine.loader import load_runner  # torch, from here on

            self._runner = load_runner(self.settings, progress)
        runner, assets = self._runner, self._runner.assets
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
            max_batch_size=self.settings.max_batch_size,
            max_step_tokens=self.settings.max_step_tokens,
        )
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
        self._runner = None

    # --- beside the steps -----------------------------------------------------------------

    def has_chores(self) -> bool:
        return self.kv.has_chores() or self.grammars.has_ready

    def do_chores(self) -> list[ControlReply]:
        for seq in self.grammars.take_ready():
            self._admit(seq)
        return self.kv.do_chores() if self.kv.has_chores() else []

    # --- one step -------------------------------------------------------------------------

    def has_work(self) -> bool:
        return self.scheduler.has_work or bool(self._ended)

    def step(self) -> StepOutput:
        plan = self._with_masks(self.scheduler.schedule(perf_counter()))
        result = self._run(plan)
        outputs = self._commit(plan, result)
        return StepOutput(outputs, self.stats.count_step(plan.num_tokens))

    def _with_masks(self, plan: StepPlan) -> StepPlan:
        constraints = {
            row.rid: grammar
            for row in plan.rows
            if row.sampling is not None
            and row.sampling.grammar is not None
            and (grammar := self.scheduler.running[row.rid].grammar) is not None
        }
        return replace(plan, masks=self.grammars.masks(constraints)) if constraints else plan

    def _run(self, plan: StepPlan) -> StepResult:
        """Runs the plan; where that fails as a whole, row by row, so that one request's failure
        stays its own. Running again is safe: a row writes the same KV to the same slots, and
        no row of a plan writes the source of a copy."""
        runner = self._runner
        assert runner is not None, "load() comes first"
        if not plan.rows:
            return StepResult()
        try:
            return runner.run(plan)
        except Exception as error:
            logger.warning("a step of %d rows failed", len(plan.rows), exc_info=True)
            if len(plan.rows) == 1:
                return StepResult(errors={plan.rows[0].rid: one_line(error)})
        result = StepResult()
        for row in plan.rows:
            copies = [copy for copy in plan.copies if copy.target in row.blocks]
            scrubs = [block for block in plan.scrubs if block in row.blocks]
            try:
                alone = runner.run(StepPlan([row], copies, scrubs, plan.masks))
            except Exception as error:
                result.errors[row.rid] = one_line(error)
            else:
                result.add(alone)
        return result

    def _commit(self, plan: StepPlan, result: StepResult) -> list[SequenceOutput]:
        outputs, self._ended = self._ended, []
        self.cache.end_step()
        for seq in self.scheduler.take_dropped():
            outputs.append(SequenceOutput(seq.rid, b"", finish="abort"))
        for row in plan.rows:
            output = self._advance(self.scheduler.running[row.rid], row, result)
            if output is not None:
                outputs.append(output)
        return outputs

    def _advance(self, seq: Sequence, row: Row, result: StepResult) -> SequenceOutput | None:
        """One sequence takes in what the step did for it."""
        error = result.errors.get(seq.rid)
        token = result.tokens.get(seq.rid)
        if error is None and row.sampling is not None and token is None:
            error = "the runner chose no token"
        if error is not None:
            if seq.grammar is not None and seq.grammar.error is not None:
                return self._refuse(seq, seq.grammar.error)
            if error == NONE_LEFT:
                return self._refuse(seq, error)
            self.scheduler.finish(seq, failed=True)
            return _told(seq, SequenceOutput(seq.rid, b"", finish="error", error=error))
        self.cache.commit(seq, len(row.token_ids))
        is_first = not seq.reported
        output = _told(seq, SequenceOutput(seq.rid, b""))
        told = seq.prompt_outputs is not None and seq.prompt_outputs.tell(output, row, result)
        if token is not None:
            output.logprobs = [logprob] if (logprob := result.logprobs.get(seq.rid)) else None
            self._append(seq, token, output)
        elif seq.num_behind == 0:  # nothing is to be chosen
            output.finish = "length" if output.embedding is None else "stop"
        elif not is_first and not told:
            return None
        if output.finish is not None:
            self.scheduler.finish(seq)
        return output

    def _refuse(self, seq: Sequence, error: str) -> SequenceOutput:
        """It asks for what cannot be."""
        self.scheduler.finish(seq, failed=True)
        return _told(seq, _refused(seq, error))

    def _append(self, seq: Sequence, token: int, output: SequenceOutput) -> None:
        seq.tokens.append(token)
        output.token_ids = pack_ids((token,))
        if seq.grammar is not None:
            seq.grammar.take(token)
            if seq.grammar.error is not None:
                output.finish, output.error, output.refused = "error", seq.grammar.error, True
                output.token_ids, output.logprobs = b"", None
            elif seq.grammar.complete:
                output.finish = "stop"
                output.stop_token_id = token if token in seq.eos_ids else None
        elif token in seq.stop_ids and len(seq.tokens) > seq.min_len:
            output.finish, output.stop_token_id = "stop", token
        if output.finish is None and seq.is_full:
            output.finish = "length"

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
                submitted_s=perf_counter(),
            )
        except Exception as error:
            text = error.message if isinstance(error, RequestError) else one_line(error)
            self._ended.append(SequenceOutput(submit.rid, b"", finish="error", error=text))
        else:
            grammar = submit.sampling.grammar
            if grammar is None or not self.grammars.hold(seq, grammar):
                self._admit(seq)

    def _admit(self, seq: Sequence) -> None:
        if seq.grammar is not None and seq.grammar.error is not None:
            self._ended.append(_told(seq, _refused(seq, seq.grammar.error)))
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
            refused = SequenceOutput(seq.rid, b"", finish="error", error=error.message)
            self._ended.append(_told(seq, refused))
            return
        seq.use(update.sampling)
        if seq.is_full and update.sampling.pooling is None:
            self._finish(seq)
            self._ended.append(_told(seq, SequenceOutput(seq.rid, b"", finish="length")))

    def _abort(self, rids: list[int]) -> None:
        for rid in rids:
            seq = self._get(rid)
            if seq is not None:
                self._finish(seq)
        if self._ended:
            gone = set(rids)
            self._ended = [output for output in self._ended if output.rid not in gone]


def _no_one_waits() -> None:
    pass


def _refused(seq: Sequence, error: str) -> SequenceOutput:
    return SequenceOutput(seq.rid, b"", finish="error", error=error, refused=True)


def _told(seq: Sequence, output: SequenceOutput) -> SequenceOutput:
    """A request's first output, perhaps without a token, tells how it came to run."""
    if not seq.reported:
        seq.reported = True
        output.num_cached_tokens = seq.num_cached or 0
        output.queue_s = seq.queue_s
    return output
