"""One answer in the making.

The service owns it, never the task of a handler: handlers hold leases. When the last lease is
lost before the end, the answer is abandoned, and every piece of that is synchronous, so that it
works inside a cancelled task.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager

from lmserve.bridge.handle import EngineHandle
from lmserve.bridge.mailbox import Delivery, Mailbox
from lmserve.errors import AnswerConflict, DeadlineExceeded, EngineDied, EngineError
from lmserve.sampling import SamplingParams
from lmserve.service.metrics import Metrics, RequestRecord
from lmserve.service.transcript import Transcript
from lmserve.service.work import Outcome, Work, reason_of
from lmserve.types import Done, Event, TextDelta, Usage


class Generation:
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
        self.created = int(time.time())  # unix seconds
        self.model = work.model
        self.owner = work.owner
        self.session_id = work.session_id
        self.num_prompt_tokens = len(work.token_ids)
        self.sampling = work.sampling
        self.ttft_s: float | None = None  # from the request's arrival to its first token
        self.abort_reason: str | None = None  # `deadline`, `shutdown`, or whatever `abort` was told
        self._output = work.output
        self._transcript = work.transcript
        self._arrived_s = work.arrived_s
        self._submitted_s = clock()
        self._queue_s: float | None = None  # in the engine, before its first step
        self._mailbox = mailbox
        self._handle = handle
        self._metrics = metrics
        self._clock = clock
        self._on_end = on_end
        self._listeners: list[Callable[[Outcome], None]] = []
        self._num_cached_tokens = 0
        self._last_token_s = 0.0
        self._held_ids: list[int] = []  # tokens whose text is not shown yet
        self._outcome: Outcome | None = None
        self._late: DeadlineExceeded | None = None
        self._told = False  # the outcome was given to the reader
        self._num_leases = 0
        self._claimant: asyncio.Task[object] | None = None

    @property
    def ended(self) -> bool:
        return self._outcome is not None

    @property
    def usage(self) -> Usage:
        """Tokens so far."""
        return Usage(self.num_prompt_tokens, self._output.num_tokens, self._num_cached_tokens)

    @property
    def unshown_ids(self) -> list[int]:
        """Tokens since the last delta: their text is held back, or there is none."""
        return self._held_ids

    # --- who keeps it going -----------------------------------------------------------

    @contextmanager
    def lease(self) -> Iterator[Generation]:
        """Keeps the answer going. Without an await between `generate` and this, it is never
        unowned."""
        self._forget_claimant()
        self._num_leases += 1
        try:
            yield self
        finally:
            self._num_leases -= 1
            if self._num_leases == 0:
                self._abandon()

    def await_lease(self, claimant: asyncio.Task[object]) -> None:
        """Until the first lease, the answer lives as long as the task that asked for it."""
        self._claimant = claimant
        claimant.add_done_callback(self._on_claimant_done)

    def _on_claimant_done(self, _task: asyncio.Task[object]) -> None:
        self._claimant = None
        self._abandon()

    def _forget_claimant(self) -> None:
        if self._claimant is not None:
            self._claimant.remove_done_callback(self._on_claimant_done)
            self._claimant = None

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
        if stops is not None:
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
        stopped: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def on_mail() -> None:
            mailbox.listener = None  # ending here may put a last delivery
            try:
                delta = self._take(mailbox.take())
                if (delta is None or show(delta)) and self._outcome is None:
                    mailbox.listener = on_mail
                elif not stopped.done():
                    stopped.set_result(None)
            except Exception as error:
                if not stopped.done():
                    stopped.set_exception(error)

        if mailbox.waiting:
            on_mail()
        else:
            mailbox.listener = on_mail
        try:
            await stopped
        finally:
            mailbox.listener = None

    def _take(self, delivery: Delivery) -> TextDelta | None:
        """What a delivery adds to the text. Ends the generation where it says so."""
        output, token_ids = self._output, delivery.token_ids
        if token_ids:
            self._num_cached_tokens = delivery.num_cached_tokens
            self._observe(delivery)
        ended_by = delivery.stop_token_id if delivery.finish == "stop" else None
        num_hidden = 1 if token_ids and token_ids[-1] == ended_by else 0
        before = output.num_tokens
        text = output.push(token_ids[:-1] if num_hidden else token_ids)
        num_used = output.num_tokens - before
        if num_used < len(token_ids):
            token_ids = token_ids[:num_used]
        if delivery.finish is not None and output.stop is None:
            text += output.end(num_hidden)
        if self._transcript is not None:
            self._note(self._transcript, text, token_ids)
        if output.stop is not None or delivery.finish is not None:
            self._end(self._outcome_of(delivery))
        if not text:
            self._held_ids += token_ids
            return None
        if self._held_ids:
            token_ids, self._held_ids = self._held_ids + token_ids, []
        return TextDelta(text, token_ids)

    def _note(self, transcript: Transcript, text: str, token_ids: list[int]) -> None:
        transcript.add(text, token_ids)
        if self._output.stop is not None:
            transcript.cut()

    def _outcome_of(self, delivery: Delivery) -> Outcome:
        stop: str | int | None = self._output.stop
        if stop is not None:
            return Done("stop", self.usage, stop)
        if delivery.finish == "error":
            kind = EngineDied if delivery.died else EngineError
            return kind(delivery.error or "the engine failed this request")
        if delivery.finish == "stop":
            asked = delivery.stop_token_id in self.sampling.stop_token_ids
            return Done("stop", self.usage, delivery.stop_token_id if asked else None)
        return Done("length", self.usage) if delivery.finish == "length" else self._aborted()

    def _aborted(self) -> Done | DeadlineExceeded:
        if self._late is not None and self.ttft_s is None:
            return self._late
        return Done("abort", self.usage)

    def _observe(self, delivery: Delivery) -> None:
        now = self._clock()
        if self.ttft_s is None:
            self.ttft_s = now - self._arrived_s
            self._queue_s = delivery.queue_s
            self._metrics.prompt_done(self.num_prompt_tokens, self._num_cached_tokens)
            self._metrics.tokens(len(delivery.token_ids), None)
        else:
            self._metrics.tokens(len(delivery.token_ids), now - self._last_token_s)
        self._last_token_s = now

    # --- the end ----------------------------------------------------------------------

    def _end(self, outcome: Outcome) -> None:
        """Once, whoever comes first; never waits."""
        if self._outcome is not None:
            return
        self._outcome = outcome
        self._forget_claimant()
        if not self._mailbox.finished:
            self._handle.abort(self._mailbox)
        self._metrics.request_finished(self._record(outcome))
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
        first_s = self._arrived_s + (self.ttft_s or 0.0)
        return RequestRecord(
            finish_reason=reason_of(outcome),
            usage=self.usage,
            max_tokens=self.sampling.max_tokens,
            e2e_s=self._clock() - self._arrived_s,
            ttft_s=self.ttft_s,
            decode_s=self._last_token_s - first_s,
            queue_s=self._queue_s,
            prefill_s=first_s - self._submitted_s - (self._queue_s or 0.0),
        )


async def collect(generation: Generation) -> tuple[str, Done]:
    """The whole text and how it ended. Raises EngineError or DeadlineExceeded."""
    parts: list[str] = []

    def keep(delta: TextDelta) -> bool:
        parts.append(delta.text)
        return True

    with generation.lease():
        await generation.follow(keep)
        async for event in generation.events():
            if isinstance(event, Done):
                return "".join(parts), event
            parts.append(event.text)
    raise AssertionError("a generation ended without its terminal event")
