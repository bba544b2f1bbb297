"""A request made ready for the engine: checked, rendered, tokenised, counted."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from lmserve.bridge.handle import EngineHandle
from lmserve.errors import EngineUnavailable, Overloaded
from lmserve.messages import EngineInfo
from lmserve.service import limits
from lmserve.service.admission import Ticket
from lmserve.service.catalog import Catalog
from lmserve.service.deadlines import seconds_left
from lmserve.service.encode import Form, Rendered, are_short, encode_all, render
from lmserve.service.metrics import Metrics
from lmserve.service.prompt import ModelText, assets_key, is_short
from lmserve.service.transcript import Transcript
from lmserve.service.waiting import Waiting
from lmserve.service.work import Work
from lmserve.settings import Settings
from lmserve.types import GenerateRequest

MAX_LOOP_CHARS = 8000  # a longer prompt is tokenised in a thread


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
        self._executor = ThreadPoolExecutor(2, thread_name_prefix="text")
        self._text: ModelText | None = None
        self._text_lock = asyncio.Lock()

    def close(self) -> None:
        self._executor.shutdown(wait=False, cancel_futures=True)

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
                loop = asyncio.get_running_loop()
                self._text = await loop.run_in_executor(
                    self._executor, ModelText, info, self._settings
                )
            return self._text

    async def work(
        self,
        request: GenerateRequest,
        ticket: Ticket,
        arrived_s: float,
        transcript: Transcript | None,
    ) -> Work:
        info = self.info()
        model = self.catalog.find(request.model, info)
        limits.check_prompt(request, info)
        limits.check_turn(request)
        sampling = limits.sampling_params(request, info)
        self._seconds_left(request, arrived_s)  # before the work
        text = await self.model_text(info)
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
            priority=request.priority,
            deadline_s=self._seconds_left(request, arrived_s),
            owner=request.owner,
            session_id=request.session_id,
            transcript=transcript,
        )

    async def encode(
        self, requests: Sequence[GenerateRequest], ticket: Ticket, *, add_bos: bool
    ) -> list[list[int]]:
        text = await self.model_text(self.info())
        if are_short(requests, MAX_LOOP_CHARS):
            return encode_all(text, requests, add_bos)
        ticket.job = job = self._executor.submit(encode_all, text, requests, add_bos)
        return await asyncio.wrap_future(job)

    async def render(self, request: GenerateRequest, ticket: Ticket, form: Form) -> Rendered:
        info = self.info()
        model = self.catalog.find(request.model, info)
        limits.check_shown(request, info)
        text = await self.model_text(info)
        if are_short([request], MAX_LOOP_CHARS):
            return render(model, form, request, text)
        ticket.job = job = self._executor.submit(render, model, form, request, text)
        return await asyncio.wrap_future(job)

    async def _token_ids(
        self, text: ModelText, request: GenerateRequest, ticket: Ticket
    ) -> list[int]:
        if is_short(request, MAX_LOOP_CHARS):
            return text.token_ids(request)
        ticket.job = job = self._executor.submit(text.token_ids, request)
        return await asyncio.wrap_future(job)

    def _seconds_left(self, request: GenerateRequest, arrived_s: float) -> float | None:
        return seconds_left(request, self._clock() - arrived_s, self._waiting)
