"""Requests in, generations out: the only user of the engine's gate and of the text modules."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Literal, TypeVar

from lmserve.bridge.handle import EngineHandle
from lmserve.errors import EngineError
from lmserve.messages import LOWEST
from lmserve.sampling import SamplingParams
from lmserve.service import limits
from lmserve.service.admission import Admission, Ticket
from lmserve.service.choices import best
from lmserve.service.deadlines import in_time, missed
from lmserve.service.draining import Draining
from lmserve.service.encode import Form, Rendered
from lmserve.service.entrance import Entrance
from lmserve.service.generation import Generation
from lmserve.service.load import Load
from lmserve.service.metrics import Metrics
from lmserve.service.prepare import Preparer
from lmserve.service.prompt import ModelText
from lmserve.service.quotas import Quotas, Rate
from lmserve.service.rating.embedding import Embedding, embed
from lmserve.service.rating.prompts import Prompts
from lmserve.service.rating.scoring import Likelihood, perplexity, score
from lmserve.service.tenants import LimitsOf, Tenants, no_limits
from lmserve.service.transcript import Transcript
from lmserve.service.waiting import Place, Waiting
from lmserve.service.whole import collect, read
from lmserve.service.work import Work
from lmserve.settings import Settings
from lmserve.types import GenerateRequest

__all__ = ["Generation", "Service", "best", "collect", "read"]

T = TypeVar("T")

logger = logging.getLogger(__name__)


class Service:
    """Lives on one loop. `prepare` once the engine is ready; `drain`, then `close` at the end."""

    def __init__(
        self,
        handle: EngineHandle,
        settings: Settings,
        metrics: Metrics,
        *,
        limits_of: LimitsOf = no_limits,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.tenants = Tenants(limits_of, isolate=settings.access.isolate_cache)
        self._handle = handle
        self._metrics = metrics
        self._clock = clock
        self._waiting = Waiting(handle, clock, fair=settings.engine.fair)
        self._preparer = Preparer(handle, settings, metrics, self._waiting, clock)
        self.catalog = self._preparer.catalog
        self.texts = self._preparer.pool
        self._admission = Admission(
            settings.server.max_queued_requests,
            settings.server.max_queued_tokens,
            self._waiting.retry_after_s,
            Quotas(limits_of, clock, self._waiting.retry_after_s),
        )
        self._entrance = Entrance(self._admission, metrics)
        self._prompts = Prompts(self._preparer, self._entrance, self._start, clock)
        self._generations: dict[Generation, Place] = {}
        self._num_prefills = 0
        self.draining = Draining(self._entrance, lambda: self.inflight, self._shut_down)
        #: Told of each answer as it begins, in the task that asked for it; must not raise.
        self.on_start: Callable[[Generation], None] | None = None

    @property
    def inflight(self) -> int:
        """Requests being prepared, waiting or running."""
        return self._admission.num_requests

    def rates(self, owner: str) -> list[Rate]:
        """What this owner's key may still send, where it has such limits."""
        return self._admission.quotas.of(owner).rates()

    def load(self) -> Load:
        """What it has to do now."""
        waiting = (one.passed_s for one, place in self._generations.items() if not place.begun)
        return Load(
            self._admission.num_requests,
            self._admission.num_tokens,
            max(waiting, default=0.0),
            Counter(one.owner for one in self._generations if one.owner),
            self._entrance.is_shut,
        )

    async def prepare(self) -> None:
        """Loads tokenizer and template, so that the first request need not wait for them.

        Raises ModelError where the tokenizer is damaged."""
        await self.model_text()

    async def generate(
        self, request: GenerateRequest, transcript: Transcript | None = None
    ) -> Generation:
        """Validates, renders, tokenises, submits. Raises RequestError, Overloaded,
        DeadlineExceeded or EngineUnavailable; then nothing runs. Take a lease before the next
        await."""
        limits.check_one(request)
        (generation,) = await self._generate_all([request], transcript)
        return generation

    async def generate_all(self, requests: Sequence[GenerateRequest]) -> list[Generation]:
        """All of them or, where one is refused, none. Of each request `n` or `best_of`, one after
        the other; `best` chooses among them."""
        limits.check_choices(requests, self._admission.most_queued(requests[0].owner))
        return await self._generate_all(requests, None)

    async def embed(
        self, requests: Sequence[GenerateRequest], pooling: Literal["mean", "last"]
    ) -> list[Embedding]:
        """The pooled hidden states of their prompts. Raises as `generate` does, and EngineError."""
        return await embed(self._prompts, requests, pooling)

    async def score(
        self, requests: Sequence[GenerateRequest], labels: Sequence[str | Sequence[int]]
    ) -> list[list[Likelihood]]:
        """How likely each label, a text or tokens, is after each prompt. Raises as `embed`
        does."""
        return await score(self._prompts, requests, labels)

    async def perplexity(self, requests: Sequence[GenerateRequest]) -> list[Likelihood]:
        """How likely the prompts are, each less its first token. Raises as `embed` does."""
        return await perplexity(self._prompts, requests)

    async def encode(
        self, requests: Sequence[GenerateRequest], *, add_bos: bool, owner: str = ""
    ) -> list[list[int]]:
        """Their prompts in tokens; nothing runs. Raises as `generate` does."""
        limits.check_texts(len(requests))
        with self._entrance.place(owner) as ticket:
            return await self._preparer.encode(requests, ticket, add_bos=add_bos)

    async def render(self, request: GenerateRequest, form: Form, owner: str = "") -> Rendered:
        """Its prompt in text and tokens; nothing runs. Raises as `generate` does."""
        with self._entrance.place(owner) as ticket:
            return await self._preparer.render(request, ticket, form)

    @property
    def at_leisure(self) -> bool:
        """Nobody waits, and there is room for many more: what need not be done now may be."""
        waiting = self._handle.stats.num_waiting - self._num_prefills
        return waiting <= 0 and not self._admission.is_pressed and not self._entrance.is_shut

    async def prefill(self, token_ids: list[int], owner: str, cache_salt: str = "") -> int:
        """Runs these tokens while nobody else has any to run: a prompt that begins with them finds
        them in the cache. Returns how many were there already. A caller that is cancelled ends it.
        Raises RateLimited, EngineUnavailable, EngineError."""
        self._entrance.check_draft(owner)
        sampling = SamplingParams(temperature=0.0, max_tokens=1)
        most = self._preparer.info().max_model_len - 1
        tenant = self.tenants.of(owner, cache_salt)
        mailbox = self._handle.submit(token_ids[:most], sampling, LOWEST, tenant)
        self._num_prefills += 1
        try:
            while True:
                delivery = await mailbox.get()
                if delivery.finish in ("stop", "length"):
                    self._entrance.spend(owner, len(token_ids) - delivery.num_cached_tokens)
                    return delivery.num_cached_tokens
                if delivery.finish is not None:
                    raise EngineError(delivery.error or "there was no room to run this ahead")
        finally:
            self._num_prefills -= 1
            self._handle.abort(mailbox)

    async def in_time(
        self, request: GenerateRequest, wait: Callable[[], Awaitable[T]]
    ) -> tuple[T, GenerateRequest]:
        """Waits for what must come before `generate`, within the request's deadline. Returns the
        request with what is left of that. Raises DeadlineExceeded."""
        return await in_time(request, wait, self._clock)

    def position(self, generation: Generation) -> tuple[int, float | None] | None:
        """How many come before it, and in how many seconds it begins, as far as is known; None
        once it has begun."""
        place = self._generations.get(generation)
        return None if place is None else self._waiting.position(place)

    def update(
        self,
        generation: Generation,
        *,
        max_tokens: int | None = None,
        temperature: float | None = None,
        stop: Sequence[str] | None = None,
    ) -> int:
        """Changes a running answer from its next token on. Returns the tokens it had by then, as
        far as is known. Raises InvalidField, AnswerConflict, EngineUnavailable."""
        sampling = limits.changed(
            generation.sampling,
            generation.num_prompt_tokens,
            self._preparer.info(),
            max_tokens=max_tokens,
            temperature=temperature,
            stop=stop,
        )
        return generation.update(sampling, stop)

    def abort_session(self, owner: str, session_id: int) -> int:
        """Ends the answers that this owner asked for under this id, whatever route made them;
        their readers see `abort`. Says how many there were."""
        return self._abort(lambda one: (one.owner, one.session_id) == (owner, session_id))

    def abort_all(self, owner: str) -> int:
        """Ends every answer that this owner asked for. Says how many there were."""
        return self._abort(lambda one: one.owner == owner)

    async def model_text(self) -> ModelText:
        """Tokenizer and template of the model that is served. Raises EngineUnavailable while
        there is none, ModelError where the tokenizer is damaged."""
        return await self._preparer.model_text(self._preparer.info())

    async def drain(self, timeout_s: float) -> None:
        """Takes nothing new, lets running answers finish, aborts the rest. Their readers see
        `abort`."""
        await self.draining.wait(timeout_s)

    def close(self) -> None:
        """Ends everything at once. Idempotent."""
        self._entrance.shut()
        self._shut_down()
        self._preparer.close()

    # --- one request ------------------------------------------------------------------

    async def _generate_all(
        self, requests: Sequence[GenerateRequest], transcript: Transcript | None
    ) -> list[Generation]:
        arrived_s = self._clock()
        num_answers, owner = sum(map(limits.num_made, requests)), requests[0].owner
        tickets = self._entrance.enter_all(num_answers, owner)
        works: list[Work] = []
        prompts: dict[Ticket, int] = {}
        generations: list[Generation] = []
        try:
            for request in requests:
                own = tickets[len(works) : len(works) + limits.num_made(request)]
                works += await self._preparer.works(request, own, arrived_s, transcript)
                prompts[own[0]] = len(works[-1].token_ids)  # of all its answers
                self._entrance.check_sum(requests, sum(prompts.values()))  # before more is made
                limits.check_told(request, ((len(w.token_ids), w.sampling) for w in works))
                limits.check_rated(request, (work.sampling for work in works))
            self._entrance.check_open()
            self._entrance.add_tokens(requests, prompts)
            for work, ticket in zip(works, tickets, strict=True):
                generations.append(self._start(work, ticket))
        except BaseException:
            self._entrance.refund(tickets)
            for generation in generations:
                generation.abort()
            self._entrance.leave_all(tickets[len(generations) :])
            raise
        return generations

    def _start(self, work: Work, ticket: Ticket | None = None) -> Generation:
        """At its end the place is given back."""
        tenant = self.tenants.of(work.owner, work.cache_salt)
        mailbox = self._handle.submit(work.token_ids, work.sampling, work.priority, tenant)
        place = self._waiting.enter(work.priority, tenant)
        mailbox.on_begun = partial(self._waiting.told, place)
        generation = Generation(
            work,
            mailbox,
            handle=self._handle,
            metrics=self._metrics,
            clock=self._clock,
            on_end=partial(self._on_end, ticket=ticket),
        )
        self._generations[generation] = place
        logger.debug("is %d in the engine", generation.rid)
        if self.on_start is not None:
            self.on_start(generation)
        if work.deadline_s is not None:
            self._end_in(work.deadline_s, generation)
        claimant = asyncio.current_task()
        assert claimant is not None
        generation.await_lease(claimant)
        return generation

    def _end_in(self, seconds: float, generation: Generation) -> None:
        def on_deadline() -> None:
            generation.miss_deadline(missed(self._waiting.retry_after_s()))

        timer = asyncio.get_running_loop().call_later(seconds, on_deadline)
        generation.on_ended(lambda _: timer.cancel())

    # --- the end ----------------------------------------------------------------------

    def _abort(self, meant: Callable[[Generation], bool]) -> int:
        generations = [generation for generation in self._generations if meant(generation)]
        for generation in generations:
            generation.abort()
        return len(generations)

    def _shut_down(self) -> None:
        for generation in list(self._generations):
            generation.abort("shutdown")

    def _on_end(self, generation: Generation, ticket: Ticket | None) -> None:
        self._waiting.end(self._generations.pop(generation))
        self._entrance.spend(generation.owner, generation.usage.completion_tokens)
        if ticket is not None:
            self._entrance.leave(ticket)
