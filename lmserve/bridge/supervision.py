"""The supervision of engines behind a channel, one after the other.

One task lives each engine after the other: launch, connect, wait for the end of the channel,
bury. The end of the channel is the one sign of death, so there is one path for a crash, a kill,
an escaped exception and nonsense on the wire: every request of which something was told gets its
terminal error, and the engine is started again after a pause (`Restarts`). It is sent the other
requests, and those that came meanwhile (`Requests`), if it is ready within `restart_wait_s`. An
engine that is put to sleep takes its supervisor with it; waking starts another, which first waits
for the end of the one before.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import socket
from abc import abstractmethod

from lmserve.bridge.channel import ServerChannel
from lmserve.bridge.controls import Controls
from lmserve.bridge.handle import ASLEEP, EngineHandle, Health, State
from lmserve.bridge.host import DEFAULT_CORE, Boot
from lmserve.bridge.pulse import Pulse
from lmserve.bridge.requests import Requests
from lmserve.bridge.restarts import Restarts
from lmserve.errors import EngineUnavailable
from lmserve.messages import (
    Control,
    EngineInfo,
    EngineStats,
    ToEngine,
    ToServer,
)
from lmserve.settings import EngineSettings

logger = logging.getLogger(__name__)

PULSE_ID = 0  # the control id of the pulse: nobody awaits its replies
CLOSE_GRACE_S = 5.0  # told to stop, an engine gets this long
POLL_S = 0.01  # to see whether one has ended


class SupervisedEngine(EngineHandle):
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
        self._is_loaded = False
        self._load_error: str | None = None
        self._death = ""  # how the last engine ended
        self._began_s = 0.0  # when the last one was started
        self._channel: ServerChannel | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._restarts = Restarts()
        self._ids = itertools.count(1)  # request and control ids
        self._requests = Requests()
        self._patience: asyncio.TimerHandle | None = None  # of requests, while it restarts
        self._was_given_up = False
        self._controls = Controls(self._ids)
        self._pulse = Pulse(
            settings, ask=self._ask_pulse, on_stuck=self._on_stuck, on_dead=self._on_dead
        )

    # --- what those that come after do each in its way ---

    @abstractmethod
    async def _launch(self) -> socket.socket:
        """Starts an engine and returns the server's end of its channel. Where the system has no
        process, socket or thread for it: OSError or RuntimeError."""

    @abstractmethod
    async def _bury(self, *, at_once: bool) -> str:
        """Waits a bounded time for the end of the engine, whose channel is closed, then ends it
        by force (`at_once`: without waiting). Returns how it ended, for people."""

    async def _no_more(self) -> None:
        """Of engines, from this supervisor: what was made ready for the next is let go."""

    @abstractmethod
    def _on_messages(self, messages: list[ToServer]) -> None:
        """What the engine says, while it is wanted."""

    # --- one life after the other ---

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
        self._lose_patience()
        self._end_all("abort")
        self._pulse.stop()
        self._stopping.set()
        if self._supervisor is not None:
            await asyncio.wait((self._supervisor,))  # a cancelled close still leaves no process

    async def _supervise(
        self, stopping: asyncio.Event, predecessor: asyncio.Task[None] | None
    ) -> None:
        """One engine after the other, until stopped or given up."""
        try:
            if predecessor is not None:
                await asyncio.wait((predecessor,))  # in whatever way it ends
            while not stopping.is_set():
                how = await self._live(stopping)
                if stopping.is_set() or not await self._recover(how, stopping):
                    return
        except Exception:
            logger.exception("the supervisor of the engine failed")
            if not stopping.is_set():  # else there may be a successor, and what is open is its
                self._lose_patience()
                self._end_all("error", "the engine cannot be supervised")
                self._set_state("failed", "the engine's supervisor failed; see the log")
        finally:
            await self._no_more()

    async def _live(self, stopping: asyncio.Event) -> str:
        """One engine's life. Returns how it ended."""

        def on_messages(messages: list[ToServer]) -> None:
            if not stopping.is_set():  # what comes later is of an engine that is wanted no more
                self._on_messages(messages)

        self._load_error, self._was_given_up = None, False
        self._began_s = asyncio.get_running_loop().time()
        boot = Boot.like_here(self._settings, self._core)
        try:
            sock = await self._launch()
        except OSError as error:
            return f"it cannot be started: {error.strerror or error}"
        except RuntimeError as error:  # no thread
            return f"it cannot be started: {error}"
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
            at_once = not channel.closed.done() or self._was_given_up
            self._channel = None
            channel.close()
        self._lost()
        return await self._bury(at_once=at_once)

    def _listens(self) -> bool:
        """Whether the engine can be asked to stop: it is loaded, and not stuck."""
        return self._is_loaded and self._pulse.silent_s < self._settings.stuck_after_s

    def _lost(self) -> None:
        """The channel is gone, and with it all that was told to this engine."""
        self.stats, self._is_loaded = EngineStats(), False
        self._pulse.stop()
        if self._state in ("ready", "stuck"):
            self._set_state("restarting", f"the {self.NOUN} died")
            self._be_patient()
        self._requests.lost(self.NOUN, keep=self._patience is not None)
        self._controls.end_all()

    def _be_patient(self) -> None:
        """What is not told of yet, and what comes, waits for the next engine; not for long."""
        if self._settings.restart and self._settings.restart_wait_s:
            self._patience = asyncio.get_running_loop().call_later(
                self._settings.restart_wait_s, self._out_of_patience
            )

    def _lose_patience(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _out_of_patience(self) -> None:
        self._patience = None
        error = f"the {self.NOUN} died, and the next is not ready yet; send it again later"
        self._requests.end_all("error", error, retry_after_s=self.health().retry_after_s)

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
            self._lose_patience()
            self._end_all("error", self._reason, retry_after_s=self.health().retry_after_s)
            logger.critical("%s; it is not started again", self._reason)
            return False
        self._death = f"the {self.NOUN} died ({self._load_error or how})"
        if (num := self._restarts.num_recent) > 1:
            self._death += f", {num} times within a minute"
        self._set_state("restarting", self._death)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stopping.wait(), pause_s)
        return True

    def _end_all(
        self, finish: str, error: str | None = None, *, retry_after_s: int | None = None
    ) -> None:
        self._requests.end_all(finish, error, retry_after_s=retry_after_s)
        self._controls.end_all()

    # --- what becomes of it ---

    def _on_loading(self, stage: str) -> None:
        if self._state == "loading":
            self._set_state("loading", stage)
        elif self._state == "restarting":
            self._set_state("restarting", f"{self._death}; the next is {stage}")

    def _on_ready(self, info: EngineInfo) -> None:
        self.info, self.stats, self._is_loaded = info, EngineStats(), True
        self.start_s = asyncio.get_running_loop().time() - self._began_s
        self._restarts.ready()
        self._lose_patience()
        self._set_state("ready", "ready")
        self._pulse.start()
        for submit in self._requests.to_send():
            self._send(submit)

    def _ask_pulse(self) -> None:
        self._send(Control(PULSE_ID, "stats"))

    def _heard(self) -> None:
        self._pulse.heard()
        if self._state == "stuck":
            self._set_state("ready", "ready")
            logger.warning("the engine answers again")

    def _on_stuck(self, silent_s: float) -> None:
        if self._state == "ready":
            self._set_state("stuck", "the engine does not answer")
            logger.warning("the engine has not answered for %.1f s", silent_s)

    def _on_dead(self, silent_s: float) -> None:
        logger.error("the engine has not answered for %.0f s and is given up", silent_s)
        if self._channel is not None:
            self._was_given_up = True
            self._channel.close()  # as if it had died

    # --- its state ---

    def health(self) -> Health:
        silent_s = self._pulse.silent_s
        reason = self._reason
        if self._state == "stuck":
            reason = f"the engine has not answered for {silent_s:.0f} s"
        return Health(self._state, reason, silent_s)

    async def changed(self) -> None:
        self._state_changed.clear()
        await self._state_changed.wait()

    def _set_state(self, state: State, reason: str) -> None:
        """What happens to an engine: to one that is wanted."""
        if self._state not in ("sleeping", "closed"):
            self._turn(state, reason)

    def _turn(self, state: State, reason: str) -> None:
        self._state, self._reason = state, reason
        if state in ("sleeping", "failed", "closed"):
            self.info = None
        self._state_changed.set()

    def _unavailable(self) -> EngineUnavailable:
        health = self.health()
        message = f"the engine is not ready ({health.state}): {health.reason}"
        if self._state == "sleeping":
            message = f"the engine is {ASLEEP}"
        return EngineUnavailable(message, retry_after_s=health.retry_after_s)

    @property
    def _is_live(self) -> bool:
        """Whether it takes requests. One that is stuck may only be slow: what it is sent waits
        with what it has."""
        return self._state in ("ready", "stuck") and self._channel is not None

    def _send(self, message: ToEngine) -> None:
        """One that is loading is sent nothing: `Requests` has what it needs to know."""
        if self._channel is not None and self._is_live:
            self._channel.send(message)
