"""The engine's side of the bridge: load, then drain the intake, step, send; the same loop in a
child process and in a thread.

The loop knows nothing of models: it drives a `Core`. An exception that escapes the core leaves
it in an unknown state, so the loop ends, the channel closes, and the server tells every open
request and starts a new engine.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import logging
import time
from collections.abc import Callable
from typing import Protocol

import msgspec

from lmserve import logs
from lmserve.bridge.channel import EngineChannel, ServerGone
from lmserve.engine.cores import share_the_cores
from lmserve.engine.trace import Trace
from lmserve.errors import SetupError
from lmserve.messages import (
    Control,
    ControlReply,
    EngineInfo,
    LoadFailed,
    Loading,
    Ready,
    StepOutput,
    ToEngine,
    ToServer,
)
from lmserve.settings import EngineSettings

logger = logging.getLogger(__name__)

DEFAULT_CORE = "lmserve.engine.core:EngineCore"


class Core(Protocol):
    """What the loop drives, always from one thread. `Core(settings)` does no work yet."""

    #: Ends the loop's wait, from any thread: there are chores now. Set before `load`.
    wake: Callable[[], None]
    #: Sends something in the middle of a step. Set before `load`. Raises ServerGone.
    tell: Callable[[list[ToServer]], None]
    #: Told when a frame is sent.
    trace: Trace

    @staticmethod
    def preload() -> None:
        """Imports what `load` needs, in a process that does not know yet what to load."""

    def load(self, progress: Callable[[str], None]) -> EngineInfo:
        """Loads the model, naming each stage to `progress`. Raises SetupError with one line."""

    def handle(self, messages: list[ToEngine]) -> list[ControlReply]:
        """Takes in submits, updates, aborts and controls, in order. Every control gets one reply,
        at once or from a chore: an unknown verb an error, `stats` the EngineStats as a dict;
        `ping` and `shutdown` never come here. A submit that cannot be run gets its terminal
        output from the next step."""

    def has_work(self) -> bool:
        """Whether `step` would do something, telling of a failed or aborted request included."""

    def step(self) -> StepOutput:
        """One step. What fails for one request is that request's terminal output."""

    def has_chores(self) -> bool:
        """Whether `do_chores` would do something now."""

    def do_chores(self) -> list[ControlReply]:
        """A bounded piece of what is done beside the steps; replies to controls that it ends."""

    def close(self) -> None:
        """Frees what `load` took. Called once, also after a failed step."""


class Boot(msgspec.Struct, frozen=True, kw_only=True):
    """The first frame to an engine: nothing of it is ever in an argument list."""

    settings: EngineSettings
    core: str  # "module:Class"
    log_level: int
    log_format: str  # as `lmserve.logs` names it
    log_date_format: str | None

    @classmethod
    def like_here(cls, settings: EngineSettings, core: str) -> Boot:
        """For an engine that logs as this process does."""
        root = logging.getLogger()
        formatter = root.handlers[0].formatter if root.handlers else None
        return cls(
            settings=settings,
            core=core,
            log_level=root.getEffectiveLevel(),
            log_format=logs.form_of(formatter),
            log_date_format=formatter.datefmt if formatter else None,
        )


def run(channel: EngineChannel, boot: Boot, *, freeze: bool) -> str | None:
    """An engine's whole life. Returns what ended it where that was a failure.

    `freeze` takes what was loaded out of the garbage collector's sight: right for a process
    that is the engine's own.
    """
    share_the_cores()
    try:
        core = _make_core(boot)
        core.wake, core.tell = channel.wake, channel.send
        info = core.load(lambda stage: channel.send([Loading(stage)]))
    except ServerGone:
        return None
    except Exception as error:
        return _refuse(channel, error)
    if freeze:
        gc.collect()
        gc.freeze()
    try:
        return _serve(channel, core, info)
    finally:
        _close(core)


def preload(core: str) -> None:
    """For a process that stands by. What fails here fails again when the core is loaded, and is
    told then."""
    share_the_cores()
    with contextlib.suppress(Exception):
        _core_class(core).preload()


def _core_class(name: str) -> type[Core]:
    module, _, name = name.partition(":")
    found: type[Core] = getattr(importlib.import_module(module), name)
    return found


def _make_core(boot: Boot) -> Core:
    try:
        make: Callable[[EngineSettings], Core] = _core_class(boot.core)
    except ImportError as error:
        raise SetupError(
            f"the engine cannot be imported: {error}; install lmserve with its engine extra"
        ) from error
    return make(boot.settings)


def _refuse(channel: EngineChannel, error: Exception) -> str:
    if isinstance(error, SetupError):
        message = error.message
    else:
        message = f"the model cannot be loaded: {_one_line(error)}"
        logger.debug("loading failed", exc_info=error)
    try:
        channel.send([LoadFailed(message)])
    except ServerGone:
        pass
    return message


def _serve(channel: EngineChannel, core: Core, info: EngineInfo) -> str | None:
    try:
        channel.send([Ready(info)])
        while _turn(channel, core):
            pass
    except ServerGone:
        return None
    except Exception as error:
        logger.exception("the engine failed outside any one request and stops")
        return _one_line(error)
    return None


def _turn(channel: EngineChannel, core: Core) -> bool:
    """Drains the intake, does a chore and steps once; False when told to stop."""
    frame: list[ToServer] = []
    messages = channel.receive(block=not core.has_work() and not core.has_chores())
    if messages:
        for_core, stop = _answer_own(messages, frame)
        if stop:
            return False
        frame += core.handle(for_core)
    if core.has_chores():
        frame += core.do_chores()
    if core.has_work():
        step = core.step()
        step.stats.sent_s = time.monotonic()
        frame.append(step)
    if frame:
        with core.trace.span("send"):
            channel.send(frame)
    return True


def _answer_own(messages: list[ToEngine], frame: list[ToServer]) -> tuple[list[ToEngine], bool]:
    """Answers the pulse; returns what is for the core, and whether to stop."""
    for_core: list[ToEngine] = []
    for message in messages:
        if isinstance(message, Control) and message.verb == "shutdown":
            return for_core, True
        if isinstance(message, Control) and message.verb == "ping":
            frame.append(ControlReply(message.id, "pong"))
        else:
            for_core.append(message)
    return for_core, False


def _close(core: Core) -> None:
    try:
        core.close()
    except Exception:
        logger.exception("the engine did not close cleanly")


def _one_line(error: Exception) -> str:
    text = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
