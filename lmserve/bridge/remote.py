"""The handle of an engine behind a channel: what it is asked, and what it says.

What the child process and the thread share; how it lives and dies is in `supervision`.
"""

from __future__ import annotations

from typing import Any

from lmserve.bridge.handle import ASLEEP
from lmserve.bridge.mailbox import Mailbox
from lmserve.bridge.supervision import PULSE_ID, SupervisedEngine
from lmserve.errors import ModelError
from lmserve.messages import (
    NOBODY,
    Abort,
    Begun,
    ControlReply,
    EngineInfo,
    EngineStats,
    LoadFailed,
    Loading,
    Ready,
    StepOutput,
    Submit,
    Tenant,
    ToServer,
    Update,
    pack_ids,
)
from lmserve.sampling import SamplingParams


class RemoteEngine(SupervisedEngine):
    """Which process or thread it is in, its subclasses say."""

    # --- the handle ---

    async def start(self) -> None:
        assert self._supervisor is None, "an engine is started once"
        self._begin("starting")

    async def wait_ready(self) -> EngineInfo:
        while self._state != "ready":
            if self._state == "failed":
                raise ModelError(self._reason)
            if self._state == "closed":
                raise self._unavailable()
            await self.changed()
        assert self.info is not None
        return self.info

    def submit(
        self,
        token_ids: list[int],
        sampling: SamplingParams,
        priority: int = 0,
        tenant: Tenant = NOBODY,
    ) -> Mailbox:
        is_live, waits = self._is_live, self._patience is not None
        if not is_live and not waits:
            raise self._unavailable()
        submit = Submit(next(self._ids), pack_ids(token_ids), sampling, priority, tenant)
        mailbox = self._requests.add(submit)
        if is_live:
            self._requests.sent(submit.rid)
            self._send(submit)
        return mailbox

    def update(self, mailbox: Mailbox, sampling: SamplingParams) -> None:
        if mailbox.rid in self._requests:
            self._requests.update(mailbox.rid, sampling)
            self._send(Update(mailbox.rid, sampling))

    def abort(self, mailbox: Mailbox) -> None:
        if self._requests.forget(mailbox.rid):
            mailbox.end("abort")
            self._send(Abort([mailbox.rid]))
            if not self._requests:
                self._ask_pulse()

    async def control(self, verb: str, timeout_s: float = 5.0, **args: Any) -> Any:
        if self._channel is None or not self._is_live:
            raise self._unavailable()
        return await self._controls.ask(self._channel, verb, timeout_s, args)

    async def sleep(self) -> None:
        if self._state == "closed":
            raise self._unavailable()
        self._turn("sleeping", ASLEEP)
        await self._stop()

    async def wake(self) -> None:
        if self._state == "sleeping":
            self._begin("waking up")
        while self._state != "ready":
            if self._state in ("sleeping", "failed", "closed"):
                raise self._unavailable()
            await self.changed()

    async def close(self) -> None:
        self._turn("closed", "the engine is closed")
        await self._stop()

    # --- what the engine says ---

    def _on_messages(self, messages: list[ToServer]) -> None:
        self._heard()
        for message in messages:
            if isinstance(message, StepOutput):
                self._on_step(message)
            else:
                self._on_rare(message)

    def _on_step(self, step: StepOutput) -> None:
        self.stats = step.stats
        if self.on_step is not None:
            self.on_step(step.stats)
        put = self._requests.put
        for output in step.outputs:
            put(output)

    def _on_rare(self, message: Loading | Ready | LoadFailed | Begun | ControlReply) -> None:
        match message:
            case Begun():
                self._requests.begun(message.rids)
            case ControlReply(id=id) if id == PULSE_ID:
                self._on_pulse(message)
            case ControlReply():
                self._controls.on_reply(message)
            case Loading():
                self._on_loading(message.stage)
            case Ready():
                self._on_ready(message.info)
            case LoadFailed():
                self._load_error = message.message

    def _on_pulse(self, reply: ControlReply) -> None:
        """An idle engine's gauges: no step tells them after the abort of the last request."""
        if reply.error is None:
            self.stats = EngineStats(**reply.value)
