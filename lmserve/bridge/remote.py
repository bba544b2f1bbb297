"""An engine behind a channel, supervised: what the child process and the thread share.

One task lives each engine after the other: launch, connect, wait for the end of the channel,
bury. The end of the channel is the one sign of death, so there is one path for a crash, a kill,
an escaped exception and nonsense on the wire: every open mailbox gets its terminal error, then
the engine is started again after a pause (`Restarts`). An engine that is put to sleep takes its
supervisor with it; waking starts another, which first waits for the end of the one before.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import socket
from abc import abstractmethod
from typing import Any

from lmserve.bridge.channel import ServerChannel
from lmserve.bridge.controls import Controls
from lmserve.bridge.handle import ASLEEP, EngineHandle, Health, State
from lmserve.bridge.host import DEFAULT_CORE, Boot
from lmserve.bridge.mailbox import Mailbox
from lmserve.bridge.pulse import Pulse
from lmserve.bridge.restarts import Restarts
from lmserve.errors import EngineUnavailable, ModelError
from lmserve.messages import (
    Abort,
    Control,
    ControlReply,
    EngineInfo,
    EngineStats,
    LoadFailed,
    Loading,
    Ready,
    StepOutput,
    Submit,
    ToServer,
    Update,
    pack_ids,
)
from lmserve.sampling import SamplingParams
from lmserve.settings import EngineSettings

logger = logging.getLogger(__name__)

PULSE_ID = 0  # the control id of the pulse: nobody awaits its replies
CLOSE_GRACE_S = 5.0  # told to stop, an engine gets this long


class RemoteEngine(EngineHandle):
    """`core` names the class that the engine hosts, as "module:Class" (tests host another)."""

    NOUN = "engine"  # what dies, in messages

    def __init__(self, settings: EngineSettings, core: str = DEFAULT_CORE):
        self.info: EngineInfo | None = None
        self.stats = EngineStats()
        self._settings = settings
        self._core = core
        self._state: State = "loading"
        self._reason = "not started"
        self._state_changed = asyncio.Event()
        self._stopping = asyncio.Event()  # of the engine there is: it is wanted no more
        self._load_error: str | None = None
        self._death = ""  # how the last engine ended
        self._channel: ServerChannel | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._restarts = Restarts()
        self._ids = itertools.count(1)  # request and control ids
        self._mailboxes: dict[int, Mailbox] = {}  # open ones
        self._controls = Controls(self._ids)
        self._pulse = Pulse(
            settings, ask=self._ask_pulse, on_stuck=self._on_stuck, on_dead=self._on_dead
        )

    # --- what child and thread do each in its way ---

    @abstractmethod
    async def _launch(self) -> socket.socket:
        """Starts an engine and returns the server's end of its channel. May raise OSError."""

    @abstractmethod
    async def _bury(self, *, at_once: bool) -> str:
        """Waits a bounded time for the end of the engine, whose channel is closed, then ends it
        by force (`at_once`: without waiting). Returns how it ended, for people."""

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

    def submit(self, token_ids: list[int], sampling: SamplingParams, priority: int = 0) -> Mailbox:
        # One that is stuck may only be slow: what it is sent waits with what it has.
        if self._state not in ("ready", "stuck") or self._channel is None:
            raise self._unavailable()
        mailbox = Mailbox(next(self._ids))
        self._channel.send(Submit(mailbox.rid, pack_ids(token_ids), sampling, priority))
        self._mailboxes[mailbox.rid] = mailbox
        return mailbox

    def update(self, mailbox: Mailbox, sampling: SamplingParams) -> None:
        if mailbox.rid in self._mailboxes and self._channel is not None:
            self._channel.send(Update(mailbox.rid, sampling))

    def abort(self, mailbox: Mailbox) -> None:
        if self._mailboxes.pop(mailbox.rid, None) is None:
            return
        mailbox.end("abort")
        if self._channel is not None:
            self._channel.send(Abort([mailbox.rid]))

    async def control(self, verb: str, timeout_s: float = 5.0, **args: Any) -> Any:
        if self._channel is None or self._state not in ("ready", "stuck"):
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

    def health(self) -> Health:
        silent_s = self._pulse.silent_s
        reason = self._reason
        if self._state == "stuck":
            reason = f"the engine has not answered for {silent_s:.0f} s"
        return Health(self._state, reason, silent_s)

    async def changed(self) -> None:
        self._state_changed.clear()
        await self._state_changed.wait()

    async def close(self) -> None:
        self._turn("closed", "the engine is closed")
        await self._stop()

    # --- supervision ---

    def _begin(self, reason: str) -> None:
        """From here on an engine is wanted."""
        self._turn("loading", reason)
        self._pulse.heard()
        self._stopping = asyncio.Event()
        self._supervisor = asyncio.create_task(
            self._supervise(self._stopping, self._supervisor), name=f"{self.NOUN} supervisor"
        )

    async def _stop(self) -> None:
        """From here on none is. Returns when there is none, even where this is cancelled."""
        self._end_all("abort")
        self._pulse.stop()
        self._stopping.set()
        if self._supervisor is not None:
            await asyncio.shield(self._supervisor)  # a cancelled close still leaves no process

    async def _supervise(
        self, stopping: asyncio.Event, predecessor: asyncio.Task[None] | None
    ) -> None:
        """One engine after the other, until stopped or given up."""
        if predecessor is not None:
            await predecessor
        try:
            while not stopping.is_set():
                how = await self._live(stopping)
                if stopping.is_set() or not await self._recover(how, stopping):
                    return
        except Exception:
            logger.exception("the supervisor of the engine failed")
            self._end_all("error", "the engine cannot be supervised")
            self._set_state("failed", "the engine's supervisor failed; see the log")

    async def _live(self, stopping: asyncio.Event) -> str:
        """One engine's life. Returns how it ended."""

        def on_messages(messages: list[ToServer]) -> None:
            if not stopping.is_set():  # what comes later is of an engine that is wanted no more
                self._on_messages(messages)

        self._load_error = None
        boot = Boot.like_here(self._settings, self._core)
        try:
            sock = await self._launch()
        except OSError as error:
            return f"it cannot be started: {error.strerror or error}"
        channel = await ServerChannel.connect(sock, on_messages, boot)
        self._channel = channel
        stopped = asyncio.create_task(stopping.wait())
        try:
            await asyncio.wait((channel.closed, stopped), return_when=asyncio.FIRST_COMPLETED)
            if not channel.closed.done() and self._listens():
                channel.send(Control(PULSE_ID, "shutdown"))
                await asyncio.wait((channel.closed,), timeout=CLOSE_GRACE_S)
        finally:
            stopped.cancel()
            at_once = not channel.closed.done()
            self._channel = None
            channel.close()
        self._lost()
        return await self._bury(at_once=at_once)

    def _listens(self) -> bool:
        """Whether the engine can be asked to stop: it is loaded, and not stuck."""
        return self.info is not None and self._pulse.silent_s < self._settings.stuck_after_s

    def _lost(self) -> None:
        """The channel is gone, and with it all that was told to this engine."""
        self.info, self.stats = None, EngineStats()
        self._pulse.stop()
        if self._state in ("ready", "stuck"):
            self._set_state("restarting", f"the {self.NOUN} died")
        self._end_all(
            "error", f"the {self.NOUN} died while this request ran in it; send it again", died=True
        )

    async def _recover(self, how: str, stopping: asyncio.Event) -> bool:
        """Decides what follows a death; waits out the pause. False to give up."""
        if self._state == "loading":  # the first start: it would fail again
            self._set_state(
                "failed", self._load_error or f"the {self.NOUN} died while loading: {how}"
            )
            return False
        logger.error("the %s died: %s", self.NOUN, self._load_error or how)
        pause_s = self._restarts.died()
        if not self._settings.restart or pause_s is None:
            times = "" if pause_s is not None else " again and again"
            self._set_state("failed", f"the {self.NOUN} died{times}: {self._load_error or how}")
            logger.critical("%s; it is not started again", self._reason)
            return False
        self._death = f"the {self.NOUN} died ({self._load_error or how})"
        self._set_state("restarting", self._death)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stopping.wait(), pause_s)
        return True

    def _end_all(self, finish: str, error: str | None = None, *, died: bool = False) -> None:
        mailboxes, self._mailboxes = self._mailboxes, {}
        for mailbox in mailboxes.values():
            mailbox.end(finish, error, died=died)
        self._controls.end_all()

    def _set_state(self, state: State, reason: str) -> None:
        """What happens to an engine: to one that is wanted."""
        if self._state not in ("sleeping", "closed"):
            self._turn(state, reason)

    def _turn(self, state: State, reason: str) -> None:
        self._state, self._reason = state, reason
        self._state_changed.set()

    def _unavailable(self) -> EngineUnavailable:
        health = self.health()
        message = f"the engine is not ready ({health.state}): {health.reason}"
        if self._state == "sleeping":
            message = f"the engine is {ASLEEP}"
        return EngineUnavailable(message, retry_after_s=health.retry_after_s)

    # --- what the engine says ---

    def _on_messages(self, messages: list[ToServer]) -> None:
        self._pulse.heard()
        if self._state == "stuck":
            self._set_state("ready", "ready")
            logger.warning("the engine answers again")
        for message in messages:
            if isinstance(message, StepOutput):
                self._on_step(message)
            else:
                self._on_rare(message)

    def _on_step(self, step: StepOutput) -> None:
        self.stats = step.stats
        self._restarts.worked()
        if self.on_step is not None:
            self.on_step(step.stats)
        mailboxes = self._mailboxes
        for output in step.outputs:
            mailbox = mailboxes.get(output.rid)
            if mailbox is not None:
                if output.finish is not None:  # before `put`: its listener may abort any of them
                    del mailboxes[output.rid]
                mailbox.put(output)

    def _on_rare(self, message: Loading | Ready | LoadFailed | ControlReply) -> None:
        match message:
            case ControlReply(id=id) if id == PULSE_ID:
                self._on_pulse(message)
            case ControlReply():
                self._controls.on_reply(message)
            case Loading():
                self._on_loading(message.stage)
            case Ready():
                self.info, self.stats = message.info, EngineStats()
                self._set_state("ready", "ready")
                self._pulse.start()
            case LoadFailed():
                self._load_error = message.message

    def _on_loading(self, stage: str) -> None:
        if self._state == "loading":
            self._set_state("loading", stage)
        elif self._state == "restarting":
            self._set_state("restarting", f"{self._death}; the next is {stage}")

    # --- the pulse ---

    def _on_pulse(self, reply: ControlReply) -> None:
        """An idle engine's gauges: no step tells them after an abort of the last request."""
        if reply.error is None:
            self.stats = EngineStats(**reply.value)

    def _ask_pulse(self) -> None:
        if self._channel is not None:
            self._channel.send(Control(PULSE_ID, "stats"))

    def _on_stuck(self, silent_s: float) -> None:
        if self._state == "ready":
            self._set_state("stuck", "the engine does not answer")
            logger.warning("the engine has not answered for %.1f s", silent_s)

    def _on_dead(self, silent_s: float) -> None:
        logger.error("the engine has not answered for %.0f s and is given up", silent_s)
        if self._channel is not None:
            self._channel.close()  # as if it had died
