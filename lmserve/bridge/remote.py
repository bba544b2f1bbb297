"""An engine behind a channel, supervised: what the child process and the thread share.

One task lives each engine after the other: launch, connect, wait for the end of the channel,
bury. The end of the channel is the one sign of death, so there is one path for a crash, a kill,
an escaped exception and nonsense on the wire: every open mailbox gets its terminal error, then
the engine is started again after a pause (`Restarts`).
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
from lmserve.bridge.handle import EngineHandle, Health, State
from lmserve.bridge.host import DEFAULT_CORE, Boot
from lmserve.bridge.mailbox import Mailbox
from lmserve.bridge.restarts import Restarts
from lmserve.errors import EngineError, EngineUnavailable, ModelError
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
    pack_ids,
)
from lmserve.sampling import SamplingParams
from lmserve.settings import EngineSettings

logger = logging.getLogger(__name__)

PULSE_ID = 0  # the control id of the pulse: nobody awaits its replies
CLOSE_GRACE_S = 5.0  # told to stop, an engine gets this long
DEFAULT_LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


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
        self._closing = asyncio.Event()
        self._load_error: str | None = None
        self._death = ""  # how the last engine ended
        self._channel: ServerChannel | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._restarts = Restarts()
        self._ids = itertools.count(1)  # request and control ids
        self._mailboxes: dict[int, Mailbox] = {}  # open ones
        self._replies: dict[int, asyncio.Future[ControlReply]] = {}
        self._heard_at = 0.0
        self._pulse_s = min(1.0, settings.stuck_after_s / 4)
        self._unheard_beats = 0
        self._beat_timer: asyncio.TimerHandle | None = None

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
        self._heard_at = asyncio.get_running_loop().time()
        self._set_state("loading", "starting")
        self._supervisor = asyncio.create_task(self._supervise(), name=f"{self.NOUN} supervisor")
        self._beat()

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

    def abort(self, mailbox: Mailbox) -> None:
        if self._mailboxes.pop(mailbox.rid, None) is None:
            return
        mailbox.end("abort")
        if self._channel is not None:
            self._channel.send(Abort([mailbox.rid]))

    async def control(self, verb: str, timeout_s: float = 5.0) -> Any:
        if self._channel is None or self._state not in ("ready", "stuck"):
            raise self._unavailable()
        id = next(self._ids)
        reply: asyncio.Future[ControlReply] = asyncio.get_running_loop().create_future()
        self._replies[id] = reply
        self._channel.send(Control(id, verb))
        try:
            answer = await asyncio.wait_for(reply, timeout_s)
        except TimeoutError:
            raise EngineUnavailable(
                f"the engine did not answer {verb!r} within {timeout_s:g} s"
            ) from None
        finally:
            self._replies.pop(id, None)
        if answer.error is not None:
            raise EngineError(answer.error)
        return answer.value

    def health(self) -> Health:
        silent_s = self._silent_s()
        reason = self._reason
        if self._state == "stuck":
            reason = f"the engine has not answered for {silent_s:.0f} s"
        return Health(self._state, reason, silent_s)

    async def changed(self) -> None:
        self._state_changed.clear()
        await self._state_changed.wait()

    async def close(self) -> None:
        self._set_state("closed", "the engine is closed")
        self._end_all("abort")
        self._closing.set()
        if self._beat_timer is not None:
            self._beat_timer.cancel()
        if self._supervisor is not None:
            await asyncio.shield(self._supervisor)  # a cancelled close still leaves no process

    # --- supervision ---

    async def _supervise(self) -> None:
        """One engine after the other, until closed or given up."""
        try:
            while not self._closing.is_set():
                how = await self._live()
                if self._closing.is_set() or not await self._recover(how):
                    return
        except Exception:
            logger.exception("the supervisor of the engine failed")
            self._end_all("error", "the engine cannot be supervised")
            self._set_state("failed", "the engine's supervisor failed; see the log")

    async def _live(self) -> str:
        """One engine's life. Returns how it ended."""
        self._load_error = None
        boot = _boot(self._settings, self._core)
        try:
            sock = await self._launch()
        except OSError as error:
            return f"it cannot be started: {error.strerror or error}"
        channel = await ServerChannel.connect(sock, self._on_messages, boot)
        self._channel = channel
        closing = asyncio.create_task(self._closing.wait())
        try:
            await asyncio.wait((channel.closed, closing), return_when=asyncio.FIRST_COMPLETED)
            if not channel.closed.done() and self._listens():
                channel.send(Control(PULSE_ID, "shutdown"))
                await asyncio.wait((channel.closed,), timeout=CLOSE_GRACE_S)
        finally:
            closing.cancel()
            at_once = not channel.closed.done()
            self._channel = None
            channel.close()
        self._lost()
        return await self._bury(at_once=at_once)

    def _listens(self) -> bool:
        """Whether the engine can be asked to stop: it is loaded, and not stuck."""
        return self.info is not None and self._silent_s() < self._settings.stuck_after_s

    def _lost(self) -> None:
        """The channel is gone, and with it all that was told to this engine."""
        self.info, self.stats = None, EngineStats()
        if self._state in ("ready", "stuck"):
            self._set_state("restarting", f"the {self.NOUN} died")
        self._end_all(
            "error", f"the {self.NOUN} died while this request ran in it; send it again", died=True
        )

    async def _recover(self, how: str) -> bool:
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
            await asyncio.wait_for(self._closing.wait(), pause_s)
        return True

    def _end_all(self, finish: str, error: str | None = None, *, died: bool = False) -> None:
        mailboxes, self._mailboxes = self._mailboxes, {}
        for mailbox in mailboxes.values():
            mailbox.end(finish, error, died=died)
        replies, self._replies = self._replies, {}
        for reply in replies.values():
            if not reply.done():
                reply.set_exception(EngineUnavailable("the engine stopped before it answered"))

    def _set_state(self, state: State, reason: str) -> None:
        if self._state == "closed":
            return
        self._state, self._reason = state, reason
        self._state_changed.set()

    def _unavailable(self) -> EngineUnavailable:
        health = self.health()
        return EngineUnavailable(f"the engine is not ready ({health.state}): {health.reason}")

    # --- what the engine says ---

    def _silent_s(self) -> float:
        return max(0.0, asyncio.get_running_loop().time() - self._heard_at)

    def _on_messages(self, messages: list[ToServer]) -> None:
        self._heard_at = asyncio.get_running_loop().time()
        self._unheard_beats = 0
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
                reply = self._replies.get(message.id)
                if reply is not None and not reply.done():
                    reply.set_result(message)
            case Loading():
                self._on_loading(message.stage)
            case Ready():
                self.info, self.stats = message.info, EngineStats()
                self._set_state("ready", "ready")
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

    def _beat(self) -> None:
        """Once a pulse: asks a silent engine whether it lives, and notices when it does not:
        it is stuck, then given up.

        Beats are counted besides seconds, so that a server whose own loop was held up does
        not call the engine stuck before it has read the answer."""
        loop = asyncio.get_running_loop()
        self._beat_timer = loop.call_later(self._pulse_s, self._beat)
        if self._state not in ("ready", "stuck") or self._channel is None:
            return
        silent_s = self._silent_s()
        if silent_s < self._pulse_s / 2:
            return
        if not self._unheard_beats:
            self._channel.send(Control(PULSE_ID, "stats"))
        self._unheard_beats += 1
        if self._unheard_beats <= 2:
            return
        if silent_s > self._settings.kill_after_s:
            logger.error("the engine has not answered for %.0f s and is given up", silent_s)
            self._channel.close()  # as if it had died
        elif self._state == "ready" and silent_s > self._settings.stuck_after_s:
            self._set_state("stuck", "the engine does not answer")
            logger.warning("the engine has not answered for %.1f s", silent_s)


def _boot(settings: EngineSettings, core: str) -> Boot:
    """The engine logs as this process does."""
    root = logging.getLogger()
    formatter = root.handlers[0].formatter if root.handlers else None
    return Boot(
        settings=settings,
        core=core,
        log_level=root.getEffectiveLevel(),
        log_format=(formatter and formatter._fmt) or DEFAULT_LOG_FORMAT,
        log_date_format=formatter.datefmt if formatter else None,
    )
