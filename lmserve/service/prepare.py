"""A request made ready for the engine: checked, rendered, tokenised."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import TypeVar, TypeVarTuple

import msgspec

from lmserve.bridge.handle import EngineHandle
from lmserve.errors import EngineUnavailable, Overloaded, TextTooSlow
from lmserve.messages import EngineInfo
from lmserve.sampling import Grammar, SamplingParams
from lmserve.service import limits
from lmserve.service.admission import Ticket
from lmserve.service.catalog import Catalog
from lmserve.service.choices import Choices, of_choices
from lmserve.service.deadlines import check_wait, seconds_left
from lmserve.service.encode import Form, Rendered, are_short, encode_all, render
from lmserve.service.metrics import Metrics
from lmserve.service.prompt import ModelText, assets_key, is_short
from lmserve.service.structures import Structures
from lmserve.service.text_pool import TextPool
from lmserve.service.transcript import Transcript
from lmserve.service.waiting import Waiting
from lmserve.service.work import Run, Work
from lmserve.settings import Settings
from lmserve.text import deadline
from lmserve.types import GenerateRequest

Runs = Callable[[ModelText, list[list[int]]], list[Run]]
T = TypeVar("T")
Ts = TypeVarTuple("Ts")

MAX_LOOP_CHARS = 8000  # a longer prompt is tokenised in a thread
MAX_LOOP_WORDS = 8  # more bad words are, too
MAX_LOOP_S = 0.05  # a template that takes longer, whatever of, runs there again


class Preparer:
    """Owned by the service, on its loop."""

    def __init__(
        self,
        handle: EngineHandle,
        settings: Settings,
        metrics: Metrics,
        waiting: Waiting,
        clock: Callable[[], float],
    ):
        self.catalog = Catalog(settings)
        self._handle = handle
        self._settings = settings
        self._metrics = metrics
        self._waiting = waiting
        self._clock = clock
        self.pool = TextPool(settings.limits.text_timeout_s)
        self._structures = Structures(self.pool)
        self._text: ModelText | None = None
        self._text_lock = asyncio.Lock()

    def close(self) -> None:
        self.pool.close()

    def info(self) -> EngineInfo:
        """Of the engine that serves now. Raises EngineUnavailable while there is none."""
        info = self._handle.info
        if info is None:
            health = self._handle.health()
            raise EngineUnavailable(
                f"the engine is not ready ({health.reason}): try again in a moment",
                retry_after_s=health.retry_after_s,
            )
        self._metrics.engine_started(info)
        return info

    async def model_text(self, info: EngineInfo) -> ModelText:
        """That of this engine; loaded again only where it changed."""
        if self._text is not None and self._text.key == assets_key(info):
            return self._text
        async with self._text_lock:
            if self._text is None or self._text.key != assets_key(info):
                self._text = await asyncio.to_thread(ModelText, info, self._settings)
            return self._text

    async def works(
        self,
        request: GenerateRequest,
        tickets: Sequence[Ticket],
        arrived_s: float,
        transcript: Transcript | None,
    ) -> list[Work]:
        """One a ticket: answers to the same prompt, which is made ready once."""
        info = self.info()
        model = self.catalog.find(request.model, info)
        limits.check_prompt(request, info)
        limits.check_turn(request)
        limits.check_tools(request)
        limits.check_thinking(request, info.max_model_len)
        sampling = limits.sampling_params(request, info)
        self._check_wait(request)  # before the work
        self._seconds_left(request, arrived_s)
        text = await self.model_text(info)
        sampling = text.with_stops(request, sampling)
        sampling = await self._with_bad_words(text, request, sampling, tickets[0])
        token_ids = await self._token_ids(text, request, tickets[0])
        encoded_s = self._clock()
        sampling = limits.fit(request, sampling, len(token_ids), info)
        sampling = await self._constrained(text, request, sampling, tickets[0])
        sampling = text.speech.placed(request, sampling, token_ids)
        choices = Choices(len(tickets))
        parsers = [text.parser(request, token_ids) for _ in tickets]
        if transcript is not None:
            transcript.begin(text, token_ids, parsers[0])
        return [
            Work(
                model=model.name,
                token_ids=token_ids,
                sampling=each,
                output=text.output(request, each, token_ids, parser),
                parser=parser,
                vocabulary=text.tokenizer,
                arrived_s=arrived_s,
                encoded_s=encoded_s,
                operation="text_completion" if request.messages is None else "chat",
                priority=request.priority,
                deadline_s=self._seconds_left(request, arrived_s),
                owner=request.owner,
                cache_salt=request.cache_salt,
                session_id=request.session_id,
                transcript=transcript,
                shows_logprobs=request.logprobs is not None,
                choices=choices,
            )
            for each, parser in zip(
                of_choices(request, sampling, len(tickets)), parsers, strict=True
            )
        ]

    async def prompts(
        self, requests: Sequence[GenerateRequest], make: Runs, ticket: Ticket, arrived_s: float
    ) -> tuple[list[Callable[[], Work]], int]:
        """What `make` makes of their tokens: to be run, not answered. Put together one by one:
        what they have in common is long. And how many tokens that will be."""
        info = self.info()
        model = self.catalog.find(requests[0].model, info)
        for request in requests:
            limits.check_prompt(request, info)
            limits.check_turn(request)
            self._check_wait(request)
        text = await self.model_text(info)
        encoded = await self.encode(requests, ticket, add_bos=True)
        runs = await self.pool.run(ticket, limits.prompt_param(requests[0]), make, text, encoded)
        limits.check_inputs(requests, len(runs))
        limits.check_told(requests[0], ((len(r.token_ids), r.sampling) for r in runs))
        lengths = [len(run.token_ids) + len(run.label) for run in runs]
        for run, num_tokens in zip(runs, lengths, strict=True):
            limits.fit(requests[run.index], run.sampling, num_tokens, info)

        def work(run: Run) -> Work:
            request, token_ids = requests[run.index], [*run.token_ids, *run.label]
            return Work(
                model=model.name,
                token_ids=token_ids,
                sampling=run.sampling,
                output=text.output(request, run.sampling, token_ids),
                vocabulary=text.tokenizer,
                arrived_s=arrived_s,
                priority=request.priority,
                owner=request.owner,
                cache_salt=request.cache_salt,
                session_id=request.session_id,
            )

        return [partial(work, run) for run in runs], sum(lengths)

    async def encode(
        self, requests: Sequence[GenerateRequest], ticket: Ticket, *, add_bos: bool
    ) -> list[list[int]]:
        text = await self.model_text(self.info())
        param = limits.prompt_param(requests[0]) if requests else "input"
        short = are_short(requests, MAX_LOOP_CHARS)
        return await self._work(short, ticket, param, encode_all, text, requests, add_bos)

    async def render(self, request: GenerateRequest, ticket: Ticket, form: Form) -> Rendered:
        info = self.info()
        model = self.catalog.find(request.model, info)
        limits.check_shown(request, info)
        limits.check_tools(request)
        text = await self.model_text(info)
        short, param = are_short([request], MAX_LOOP_CHARS), limits.prompt_param(request)
        return await self._work(short, ticket, param, render, model, form, request, text)

    async def _token_ids(
        self, text: ModelText, request: GenerateRequest, ticket: Ticket
    ) -> list[int]:
        short, param = is_short(request, MAX_LOOP_CHARS), limits.prompt_param(request)
        return await self._work(short, ticket, param, text.token_ids, request)

    async def _constrained(
        self, text: ModelText, request: GenerateRequest, sampling: SamplingParams, ticket: Ticket
    ) -> SamplingParams:
        """With the grammar of the calls that the answer must be, or of its structure."""
        if not request.tools and request.structure is None:
            return sampling
        tools = limits.name_of(request, "tools")
        short = is_short(request, MAX_LOOP_CHARS)
        calls = await self._work(short, ticket, tools, text.speech.calls_source, request)
        if calls is None:
            return await self._structures.constrain(request, sampling, text.info, ticket)
        source = await self._structures.check(calls, tools, text.info, ticket)
        return msgspec.structs.replace(sampling, grammar=Grammar(source))

    async def _with_bad_words(
        self, text: ModelText, request: GenerateRequest, sampling: SamplingParams, ticket: Ticket
    ) -> SamplingParams:
        few, param = len(request.bad_words) <= MAX_LOOP_WORDS, limits.name_of(request, "bad_words")
        with_words, encodings = limits.with_bad_words, text.tokenizer.encodings
        own = (request, sampling, encodings, text.info)
        return await self._work(few, ticket, param, with_words, *own)

    async def _work(
        self, short: bool, ticket: Ticket, param: str, call: Callable[[*Ts], T], *args: *Ts
    ) -> T:
        """What it returns: of short texts at once, unless that takes long all the same."""
        if short:
            with suppress(TextTooSlow), deadline.within(MAX_LOOP_S):
                return call(*args)
        return await self.pool.run(ticket, param, call, *args)

    def _check_wait(self, request: GenerateRequest) -> None:
        try:
            check_wait(request, self._settings.limits.max_queue_s, self._waiting)
        except Overloaded:
            self._metrics.rejected("wait", request.owner)
            raise

    def _seconds_left(self, request: GenerateRequest, arrived_s: float) -> float | None:
        return seconds_left(request, self._clock() - arrived_s, self._waiting)
