"""Requests in, generations out: the only user of the engine's gate and of the text modules."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial

from lmserve.bridge.handle import EngineHandle
from lmserve.errors import EngineUnavailable, Overloaded
from lmserve.messages import EngineInfo
from lmserve.service import limits
from lmserve.service.admission import Admission, Ticket
from lmserve.service.catalog import Catalog
from lmserve.service.encode import are_short, encode_all
from lmserve.service.generation import Generation, Work, collect
from lmserve.service.metrics import Metrics
from lmserve.service.prompt import ModelText, assets_key, is_short
from lmserve.service.transcript import Transcript
from lmserve.settings import Settings
from lmserve.types import GenerateRequest

__all__ = ["Generation", "Service", "collect"]

MAX_LOOP_CHARS = 8000  # a longer prompt is tokenised in a thread
_TOLD_WITHIN_S = 1.0  # readers of aborted answers get this long to take their last event


class Service:
    """Lives on one loop. `prepare` once the engine is ready; `drain`, then `close` at the end."""

    def __init__(
        self,
        handle: EngineHandle,
        settings: Settings,
        metrics: Metrics,
        *,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.catalog = Catalog(settings)
        self._handle = handle
        self._settings = settings
        self._metrics = metrics
        self._clock = clock
        self._admission = Admission(
            settings.server.max_queued_requests, settings.server.max_queued_tokens
        )
        self._generations: set[Generation] = set()
        self._executor = ThreadPoolExecutor(2, thread_name_prefix="text")
        self._text: ModelText | None = None
        self._text_lock = asyncio.Lock()
        self._idle = asyncio.Event()
        self._idle.set()
        self._draining = False

    @property
    def inflight(self) -> int:
        """Requests being prepared, waiting or running."""
        return self._admission.num_requests

    async def prepare(self) -> None:
        """Loads tokenizer and template, so that the first request need not wait for them.

        Raises ModelError where the tokenizer is damaged."""
        await self.model_text()

    async def generate(
        self, request: GenerateRequest, transcript: Transcript | None = None
    ) -> Generation:
        """Validates, renders, tokenises, submits. Raises RequestError, Overloaded or
        EngineUnavailable; then nothing runs. Take a lease before the next await."""
        (generation,) = await self._generate_all([request], transcript)
        return generation

    async def generate_all(self, requests: Sequence[GenerateRequest]) -> list[Generation]:
        """All of them or, where one is refused, none."""
        return await self._generate_all(requests, None)

    async def encode(
        self, requests: Sequence[GenerateRequest], *, add_bos: bool
    ) -> list[list[int]]:
        """Their prompts in tokens; nothing runs. Raises as `generate` does."""
        limits.check_texts(len(requests))
        ticket = self._enter()
        try:
            text = await self.model_text()
            if are_short(requests, MAX_LOOP_CHARS):
                return encode_all(text, requests, add_bos)
            ticket.job = job = self._executor.submit(encode_all, text, requests, add_bos)
            return await asyncio.wrap_future(job)
        finally:
            self._leave(ticket)

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
        return await self._model_text(self._info())

    async def drain(self, timeout_s: float) -> None:
        """Takes nothing new, lets running answers finish, aborts the rest. Their readers see
        `abort`."""
        self._draining = True
        if await self._wait_idle(timeout_s):
            return
        for generation in list(self._generations):
            generation.abort()
        await self._wait_idle(_TOLD_WITHIN_S)

    def close(self) -> None:
        """Ends everything at once. Idempotent."""
        self._draining = True
        for generation in list(self._generations):
            generation.abort()
        self._executor.shutdown(wait=False, cancel_futures=True)

    # --- one request ------------------------------------------------------------------

    async def _generate_all(
        self, requests: Sequence[GenerateRequest], transcript: Transcript | None
    ) -> list[Generation]:
        arrived_s = self._clock()
        tickets: list[Ticket] = []
        generations: list[Generation] = []
        try:
            for _ in requests:
                tickets.append(self._enter())  # noqa: PERF401  where one fails, the others are left
            works = [
                await self._make_work(request, ticket, arrived_s, transcript)
                for request, ticket in zip(requests, tickets, strict=True)
            ]
            self._check_open()
            for work, ticket in zip(works, tickets, strict=True):
                generations.append(self._start(work, ticket))
        except BaseException:
            for generation in generations:
                generation.abort()
            for ticket in tickets[len(generations) :]:
                self._leave(ticket)
            raise
        return generations

    async def _make_work(
        self,
        request: GenerateRequest,
        ticket: Ticket,
        arrived_s: float,
        transcript: Transcript | None,
    ) -> Work:
        info = self._info()
        model = self.catalog.find(request.model, info)
        limits.check_prompt(request, info)
        sampling = limits.sampling_params(request, info)
        text = await self._model_text(info)
        sampling = text.with_stops(request, sampling)
        token_ids = await self._token_ids(text, request, ticket)
        sampling = limits.fit(request, sampling, len(token_ids), info)
        try:
            ticket.add_tokens(len(token_ids))
        except Overloaded:
            self._metrics.rejected("tokens")
            raise
        if transcript is not None:
            transcript.begin(text, token_ids)
        return Work(
            model=model.name,
            token_ids=token_ids,
            sampling=sampling,
            output=text.output(request, sampling, token_ids),
            arrived_s=arrived_s,
            owner=request.owner,
            session_id=request.session_id,
            transcript=transcript,
        )

    async def _token_ids(
        self, text: ModelText, request: GenerateRequest, ticket: Ticket
    ) -> list[int]:
        if is_short(request, MAX_LOOP_CHARS):
            return text.token_ids(request)
        ticket.job = job = self._executor.submit(text.token_ids, request)
        return await asyncio.wrap_future(job)

    def _start(self, work: Work, ticket: Ticket) -> Generation:
        mailbox = self._handle.submit(work.token_ids, work.sampling)
        generation = Generation(
            work,
            mailbox,
            handle=self._handle,
            metrics=self._metrics,
            clock=self._clock,
            on_end=partial(self._on_end, ticket=ticket),
        )
        self._generations.add(generation)
        claimant = asyncio.current_task()
        assert claimant is not None
        generation.await_lease(claimant)
        return generation

    def _info(self) -> EngineInfo:
        info = self._handle.info
        if info is None:
            raise EngineUnavailable(
                f"the engine is not ready ({self._handle.health().reason}): try again in a moment"
            )
        self._metrics.engine_started(info)
        return info

    async def _model_text(self, info: EngineInfo) -> ModelText:
        """That of the engine which serves now; loaded again only where it changed."""
        if self._text is not None and self._text.key == assets_key(info):
            return self._text
        async with self._text_lock:
            if self._text is None or self._text.key != assets_key(info):
                loop = asyncio.get_running_loop()
                self._text = await loop.run_in_executor(
                    self._executor, ModelText, info, self._settings
                )
            return self._text

    # --- places -----------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._draining:
            raise EngineUnavailable("the server is shutting down: ask another one")

    def _enter(self) -> Ticket:
        self._check_open()
        try:
            ticket = self._admission.enter()
        except Overloaded:
            self._metrics.rejected("requests")
            raise
        self._idle.clear()
        return ticket

    def _leave(self, ticket: Ticket) -> None:
        if ticket.job is not None and not ticket.job.done():  # its client left
            loop = asyncio.get_running_loop()

            def on_done(_job: object) -> None:
                with suppress(RuntimeError):  # the loop is closed
                    loop.call_soon_threadsafe(self._leave, ticket)

            ticket.job.add_done_callback(on_done)
            return
        ticket.release()
        if not self._admission.num_requests:
            self._idle.set()

    def _abort(self, meant: Callable[[Generation], bool]) -> int:
        generations = [generation for generation in self._generations if meant(generation)]
        for generation in generations:
            generation.abort()
        return len(generations)

    def _on_end(self, generation: Generation, ticket: Ticket) -> None:
        self._generations.discard(generation)
        self._leave(ticket)

    async def _wait_idle(self, timeout_s: float) -> bool:
        try:
            await asyncio.wait_for(self._idle.wait(), timeout_s)
        except TimeoutError:
            return False
        return True
