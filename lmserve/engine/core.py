"""The engine: plan, run, commit, one step after another.

Whoever hosts it (`lmserve.bridge.host`) calls `handle` and `step` in turn, from one thread.
Aborts are therefore applied before a step is planned, and again before the next: an aborted
request gets nothing more.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from time import perf_counter
from typing import Any, Protocol

import msgspec

from lmserve.engine.cache.manager import CacheManager
from lmserve.engine.cache.pins import Pins
from lmserve.engine.kv_store import KVStore, PagedKV
from lmserve.engine.plan import Row, StepPlan, StepResult
from lmserve.engine.scheduler import Scheduler
from lmserve.engine.sequence import Sequence
from lmserve.engine.stats import StatsKeeper
from lmserve.errors import InvalidField, PromptTooLong, RequestError
from lmserve.messages import (
    Abort,
    Control,
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
from lmserve.weights.base import TokenizerAssets

logger = logging.getLogger(__name__)


class StepRunner(PagedKV, Protocol):
    """A loaded model with its KV cache. `run` computes a plan; all else is what it learned."""

    model_path: str
    architecture: str
    num_parameters: int
    vocab_size: int
    max_model_len: int
    num_blocks: int
    kv_cache_bytes: int
    dtype: str
    device: str
    attention: str
    weights: str
    assets: TokenizerAssets | None  # always there in a served model

    def run(self, plan: StepPlan) -> StepResult: ...


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
        self.pins = Pins(self.cache.pool, self.cache.tree)
        self.kv = KVStore(
            runner, self.cache, num_spare=lambda: len(self.scheduler.running), wake=self.wake
        )
        return self._info(runner, assets)

    def close(self) -> None:
        if self._runner is not None:
            self.kv.close()
        self._runner = None

    # --- beside the steps -----------------------------------------------------------------

    def has_chores(self) -> bool:
        return self.kv.has_chores()

    def do_chores(self) -> list[ControlReply]:
        return self.kv.do_chores()

    # --- one step -------------------------------------------------------------------------

    def has_work(self) -> bool:
        return self.scheduler.has_work or bool(self._ended)

    def step(self) -> StepOutput:
        plan = self.scheduler.schedule(perf_counter())
        result = self._run(plan)
        outputs = self._commit(plan, result)
        return StepOutput(outputs, self.stats.count_step(plan.num_tokens))

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
                return StepResult(errors={plan.rows[0].rid: _one_line(error)})
        result = StepResult()
        for row in plan.rows:
            copies = [copy for copy in plan.copies if copy.target in row.blocks]
            scrubs = [block for block in plan.scrubs if block in row.blocks]
            try:
                alone = runner.run(StepPlan([row], copies, scrubs))
            except Exception as error:
                result.errors[row.rid] = _one_line(error)
            else:
                result.tokens.update(alone.tokens)
                result.errors.update(alone.errors)
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
            self.scheduler.finish(seq, failed=True)
            return _told(seq, SequenceOutput(seq.rid, b"", finish="error", error=error))
        self.cache.commit(seq, len(row.token_ids))
        if row.sampling is None or token is None:
            return None if seq.reported else _told(seq, SequenceOutput(seq.rid, b""))
        seq.tokens.append(token)
        output = _told(seq, SequenceOutput(seq.rid, pack_ids((token,))))
        if token in seq.stop_ids and len(seq.tokens) > seq.min_len:
            output.finish, output.stop_token_id = "stop", token
        elif seq.is_full:
            output.finish = "length"
        if output.finish is not None:
            self.scheduler.finish(seq)
        return output

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
                replies += self._control(message)
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
            text = error.message if isinstance(error, RequestError) else _one_line(error)
            self._ended.append(SequenceOutput(submit.rid, b"", finish="error", error=text))
        else:
            self.scheduler.add(seq)

    def _validate(self, submit: Submit, ids: list[int]) -> None:
        """Refuses what cannot be run. The service checks all this first, with better words."""
        if self.scheduler.get(submit.rid) is not None:
            raise RequestError(f"request id {submit.rid} is in use")
        if not ids:
            raise RequestError("the prompt has no tokens; send at least one")
        if len(ids) >= self.max_model_len:
            raise PromptTooLong(
                f"the prompt has {len(ids)} tokens and leaves no room for an answer in a context "
                f"of {self.max_model_len}; shorten it"
            )
        sampling = submit.sampling
        for token in (min(ids), max(ids), *sampling.stop_token_ids):
            if not 0 <= token < self.vocab_size:
                raise InvalidField(
                    f"token id {token} is not in the vocabulary (0 to {self.vocab_size - 1})"
                )
        if sampling.max_tokens < 1:
            raise InvalidField(f"max_tokens is {sampling.max_tokens}; it must be at least 1")

    def _update(self, update: Update) -> None:
        seq = self.scheduler.get(update.rid)
        if seq is None:
            return
        seq.use(update.sampling)
        if seq.is_full:
            self.scheduler.finish(seq)
            self._ended.append(_told(seq, SequenceOutput(seq.rid, b"", finish="length")))

    def _abort(self, rids: list[int]) -> None:
        for rid in rids:
            seq = self.scheduler.get(rid)
            if seq is not None:
                self.scheduler.finish(seq)
        if self._ended:
            gone = set(rids)
            self._ended = [output for output in self._ended if output.rid not in gone]

    def _control(self, control: Control) -> list[ControlReply]:
        try:
            answer = self._answer(control)
        except Exception as error:
            return [ControlReply(control.id, error=_one_line(error))]
        return [] if answer is None else [ControlReply(control.id, answer)]

    def _answer(self, control: Control) -> dict[str, Any] | None:
        """None where a chore will reply."""
        args = control.args
        match control.verb:
            case "pin":
                return self.pins.pin(args["key"], unpack_ids(args["token_ids"]))
            case "unpin":
                return self.pins.unpin(args["key"])
            case "save":
                self.kv.save(control.id, **args)
                return None
            case "restore":
                self.kv.restore(control.id, **args)
                return None
            case "check":
                self.cache.check()
                return self.cache.counts()._asdict()
            case "clear_cache":
                return {"blocks_freed": self.cache.clear()}
            case "stats":
                return msgspec.structs.asdict(self.stats.snapshot())
            case verb:
                raise ValueError(f"the engine knows no verb {verb!r}")

    def _info(self, runner: StepRunner, assets: TokenizerAssets) -> EngineInfo:
        return EngineInfo(
            model_path=runner.model_path,
            architecture=runner.architecture,
            num_parameters=runner.num_parameters,
            vocab_size=runner.vocab_size,
            max_model_len=self.max_model_len,
            block_size=runner.block_size,
            num_blocks=runner.num_blocks,
            kv_cache_bytes=runner.kv_cache_bytes,
            max_batch_size=self.scheduler.max_running,
            dtype=runner.dtype,
            device=runner.device,
            attention=runner.attention,
            weights=runner.weights,
            deterministic=self.settings.deterministic,
            pid=os.getpid(),
            tokenizer_file=str(assets.tokenizer_file),
            chat_template=assets.chat_template,
            bos_token=assets.bos_token,
            eos_token=assets.eos_token,
            eos_token_ids=assets.eos_token_ids,
            add_bos=assets.add_bos,
            generation_defaults=assets.generation_defaults,
        )


def _no_one_waits() -> None:
    pass


def _told(seq: Sequence, output: SequenceOutput) -> SequenceOutput:
    """A request's first output, perhaps without a token, tells how it came to run."""
    if not seq.reported:
        seq.reported = True
        output.num_cached_tokens = seq.num_cached or 0
        output.queue_s = seq.queue_s
    return output


def _one_line(error: Exception) -> str:
    text = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
