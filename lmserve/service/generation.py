"""One answer in the making.

The service owns it, never the task of a handler: handlers hold leases. When the last lease is
lost before the end, the answer is abandoned, and every piece of that is synchronous, so that it
works inside a cancelled task.
"""

from __future__ import annotations

import asyncio
import time
from array import array
from collections.abc import AsyncIterator, Callable, Sequence

from lmserve.bridge.handle import EngineHandle
from lmserve.bridge.mailbox import Delivery, Mailbox
from lmserve.errors import (
    AnswerConflict,
    DeadlineExceeded,
    EngineDied,
    EngineError,
    EngineUnavailable,
    Unsatisfiable,
)
from lmserve.messages import TokenLogprob
from lmserve.sampling import SamplingParams
from lmserve.service.extras import extras_of
from lmserve.service.leases import Leased
from lmserve.service.metrics import Metrics, RequestRecord
from lmserve.service.timing import Moments, Stopwatch, Timings
from lmserve.service.transcript import Transcript
from lmserve.service.work import Outcome, Work, reason_of
from lmserve.types import Done, Event, FinishReason, TextDelta, Usage

_WHOLE = ("stop", "length")  # reasons of an answer that is as it was asked for


class Generation(Leased):
    """Its events have one reader; `usage` and the other fields may be read by anyone."""

    def __init__(
        self,
        work: Work,
        mailbox: Mailbox,
        *,
        handle: EngineHandle,
        metrics: Metrics,
        clock: Callable[[], float],
        on_end: Callable[[Generation], None],
    ):
        super().__init__()
        self.created = int(time.time())  # unix seconds
        self.model = work.model
        self.owner = work.owner
        self.session_id = work.session_id
        self.cache_salt = work.cache_salt
        self.operation = "embeddings" if work.sampling.pooling else work.operation
        self.rid = mailbox.rid  # the engine's name for it
        self.prompt_ids: Sequence[int] = array("i", work.token_ids)
        self.num_prompt_tokens = len(work.token_ids)
        self.sampling = work.sampling
        self.vocabulary = work.vocabulary
        self.end_id: int | None = None  # the token that ended it, where it is hidden
        self.abort_reason: str | None = None  # `deadline`, `shutdown`, or whatever `abort` was told
        self._output = work.output
        self._encoded_s = work.encoded_s
        self._extras = extras_of(work)
        self._told_by = self._extras or work.output
        self._choices = work.choices
        self._transcript = work.transcript
        self._watch = Stopwatch(clock, work.arrived_s)
        self._mailbox = mailbox
        self._handle = handle
        self._metrics = metrics
        self._on_end = on_end
        self._listeners: list[Callable[[Outcome], None]] = []
        self._num_cached_tokens = 0
        self._held_ids: list[int] = []  # tokens whose text is not shown yet
        self._outcome: Outcome | None = None
        self._show: Callable[[TextDelta], bool] | None = None  # of who follows it
        self._stopped_following: asyncio.Future[None] | None = None
        self._late: DeadlineExceeded | None = None
        self._told = False  # the outcome was given to the reader

    @property
    def ended(self) -> bool:
        return self._outcome is not None

    @property
    def usage(self) -> Usage:
        """Tokens so far."""
        num_reasoning = 0 if self._extras is None else self._extras.num_reasoning_tokens
        return Usage(
            self.num_prompt_tokens, self._output.num_tokens, self._num_cached_tokens, num_reasoning
        )

    @property
    def ttft_s(self) -> float | None:
        """From the request's arrival to its first token."""
        return self._watch.ttft_s

    @property
    def passed_s(self) -> float:
        """Since the request's arrival."""
        return self._watch.passed_s

    @property
    def moments(self) -> Moments:
        """At its end."""
        return self._watch.moments(self._encoded_s)

    @property
    def timings(self) -> Timings:
        watch = self._watch
        num_run = self.num_prompt_tokens - self._num_cached_tokens
        return Timings(
            watch.queue_s, watch.prompt_s, watch.answer_s, num_run, self._output.num_tokens
        )

    @property
    def prompt_logprobs(self) -> list[TokenLogprob]:
        """Of the prompt, where they were asked for: all of them by the first token, and by the
        end where there is none."""
        return [] if self._extras is None else self._extras.prompt_logprobs

    @property
    def end_logprob(self) -> TokenLogprob | None:
        """Of `end_id`, where they were asked for."""
        return None if self._extras is None else self._extras.end_logprob

    @property
    def mean_logprob(self) -> float:
        """A token, where log probabilities were asked for."""
        assert self._extras is not None
        return self._extras.mean_logprob

    @property
    def embedding(self) -> bytes | None:
        """Of the prompt, where it was asked for: float32, little-endian."""
        return None if self._extras is None else self._extras.embedding

    @property
    def unshown_ids(self) -> list[int]:
        """Tokens since the last delta: their text is held back, or there is none."""
        return self._held_ids

    # --- who keeps it going -----------------------------------------------------------

    def _abandon(self) -> None:
        """The last reader is gone. The one policy so far: end at once."""
        if self._transcript is not None and self._outcome is None:
            self._note(self._transcript, self._output.end(), [])  # what was held
        self._end(self._aborted())

    def abort(self, reason: str | None = None) -> None:
        """Ends it from outside; its reader is told `abort`."""
        if not self.is_ending:
            self.abort_reason = reason
        if self._num_leases:
            self._handle.abort(self._mailbox)
        else:
            self._abandon()

    def miss_deadline(self, error: DeadlineExceeded) -> None:
        """Ends it: with that error where it has said nothing, else with `abort`."""
        self._late = error
        self.abort("deadline")

    @property
    def is_ending(self) -> bool:
        """It has ended, whether its reader knows or not."""
        return self.ended or self._mailbox.finished

    # --- changes ----------------------------------------------------------------------

    def update(self, sampling: SamplingParams, stops: Sequence[str] | None = None) -> int:
        """Goes on with these settings and, unless None, stop strings: what was shown stays.
        Returns the tokens made before, as far as known. Raises AnswerConflict."""
        if self.is_ending:
            raise AnswerConflict("the answer has ended: nothing of it can be changed")
        if sampling != self.sampling:
            self.sampling = sampling
            self._handle.update(self._mailbox, sampling)
        if stops is not None and sampling.grammar is None:  # else that says where it ends
            self._output.change_stops(stops)
        return self._output.num_tokens

    # --- events -----------------------------------------------------------------------

    def events(self) -> AsyncIterator[Event]:
        """TextDelta … then one Done; or raises EngineError or DeadlineExceeded. Hold a lease while
        reading."""
        return self

    def __aiter__(self) -> AsyncIterator[Event]:
        return self

    async def __anext__(self) -> Event:
        assert self._num_leases or self.ended, "hold a lease while reading"
        while self._outcome is None:
            delivery = await self._mailbox.get()
            if self._outcome is None and (delta := self._take(delivery)) is not None:
                return delta
        if self._told:
            raise StopAsyncIteration
        self._told = True
        if isinstance(self._outcome, Done):
            return self._outcome
        raise self._outcome

    async def follow(self, show: Callable[[TextDelta], bool]) -> None:
        """Hands each delta to `show` in the very turn that brings its step: no task wakes for
        it. Returns when `show` says False (its reader lags) or the text is complete; `events`
        has whatever comes next. What `show` raises is raised here."""
        if self._outcome is not None:
            return
        mailbox = self._mailbox
        assert mailbox._waiter is None, "somebody waits for the next delivery"
        self._show = show
        self._stopped_following = asyncio.get_running_loop().create_future()
        mailbox.listener = self._on_mail
        if mailbox.waiting:
            self._on_mail()
        try:
            await self._stopped_following
        finally:
            mailbox.listener = self._show = None

    def _on_mail(self) -> None:
        stopped, show = self._stopped_following, self._show
        assert stopped is not None and show is not None, "somebody follows"
        try:
            delta = self._take(self._mailbox.take())
            if (delta is None or show(delta)) and self._outcome is None:
                return
            if not stopped.done():
                stopped.set_result(None)
        except Exception as error:
            if not stopped.done():
                stopped.set_exception(error)
        self._mailbox.listener = None

    def _take(self, delivery: Delivery) -> TextDelta | None:
        """What a delivery adds to the text. Ends the generation where it says so."""
        output, extras, token_ids = self._output, self._extras, delivery.token_ids
        self._num_cached_tokens = delivery.num_cached_tokens
        if token_ids or (delivery.finish in _WHOLE and self._watch.ttft_s is None):
            self._observe(delivery)
        ended_by = delivery.stop_token_id if delivery.finish == "stop" else None
        num_hidden = 1 if token_ids and token_ids[-1] == ended_by else 0
        before = output.num_tokens
        text = self._told_by.push(token_ids[:-1] if num_hidden else token_ids)
        num_used = output.num_tokens - before
        if num_used < len(token_ids):
            token_ids = token_ids[:num_used]
        if delivery.finish is not None and output.stop is None:
            text += self._told_by.end(num_hidden)
            if num_hidden:
                self.end_id = ended_by
        if extras is not None:
            running_s = self._watch.running_s(delivery.queue_s)
            extras.take(delivery, len(token_ids), output.num_tokens - before, running_s)
        if self._transcript is not None:
            self._note(self._transcript, text, token_ids)
        ended = output.stop is not None or delivery.finish is not None
        if ended:
            self._end(self._outcome_of(delivery))
        if not text and (extras is None or not extras.has_news(ended=ended)):
            self._held_ids += token_ids
            return None
        if self._held_ids:
            token_ids, self._held_ids = self._held_ids + token_ids, []
        delta = TextDelta(text, token_ids)
        if extras is not None:
            extras.complete(delta)
        return delta

    def _note(self, transcript: Transcript, text: str, token_ids: list[int]) -> None:
        transcript.add(text, token_ids)
        if self._output.stop is not None:
            transcript.cut()

    def _outcome_of(self, delivery: Delivery) -> Outcome:
        stop: str | int | None = self._output.stop
        if stop is not None:
            return Done(self._stopped, self.usage, stop)
        if delivery.finish == "error":
            text = delivery.error or "the engine failed this request"
            if delivery.refused:
                return Unsatisfiable(text)
            if delivery.retry_after_s is not None:
                return EngineUnavailable(text, retry_after_s=delivery.retry_after_s)
            return EngineDied(text) if delivery.died else EngineError(text)
        if delivery.finish == "stop":
            asked = delivery.stop_token_id in self.sampling.stop_token_ids
            return Done(self._stopped, self.usage, delivery.stop_token_id if asked else None)
        return Done("length", self.usage) if delivery.finish == "length" else self._aborted()

    @property
    def _stopped(self) -> FinishReason:
        """The reason of an answer that ended by itself."""
        return "tool_calls" if self._extras is not None and self._extras.num_calls else "stop"

    def _aborted(self) -> Done | DeadlineExceeded:
        if self._late is not None and self.ttft_s is None:
            return self._late
        return Done("abort", self.usage)

    def _observe(self, delivery: Delivery) -> None:
        watch, num_tokens = self._watch, len(delivery.token_ids)
        if watch.ttft_s is None:
            watch.begin(delivery.queue_s)
            self._metrics.prompt_done(self.num_prompt_tokens, self._num_cached_tokens)
            self._metrics.tokens(num_tokens, None)
        else:
            self._metrics.tokens(num_tokens, watch.lap())

    # --- the end ----------------------------------------------------------------------

    def _end(self, outcome: Outcome) -> None:
        """Once, whoever comes first; never waits."""
        if self._outcome is not None:
            return
        self._outcome = outcome
        self._forget_claimant()
        self._mailbox.listener = None
        if not self._mailbox.finished:
            self._handle.abort(self._mailbox)
        self._metrics.request_finished(self._record(outcome))
        if self._choices.ended(self._output.num_tokens):
            self._metrics.choices_finished(self._choices.num, self._choices.most_tokens)
        self._on_end(self)
        listeners, self._listeners = self._listeners, []
        for listener in listeners:
            listener(outcome)

    def on_ended(self, listener: Callable[[Outcome], None]) -> None:
        """Called once, at the end, whoever brings it about and in whose task; at once where it
        has come. Never waits, must not raise."""
        if self._outcome is None:
            self._listeners.append(listener)
        else:
            listener(self._outcome)

    def _record(self, outcome: Outcome) -> RequestRecord:
        watch = self._watch
        return RequestRecord(
            finish_reason=reason_of(outcome),
            usage=self.usage,
            max_tokens=self.sampling.max_tokens,
            e2e_s=watch.passed_s,
            ttft_s=watch.ttft_s,
            decode_s=watch.answer_s,
            queue_s=watch.queue_s,
            prefill_s=watch.prompt_s,
            owner=self.owner,
        )
