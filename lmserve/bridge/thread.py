"""The engine in a thread of the server: for debugging and embedding.

The same loop over the same channel as in the child; what differs is that a thread cannot be
killed, and that torch is in the server's process.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import threading

from lmserve.bridge.channel import EngineChannel, ServerGone
from lmserve.bridge.host import Boot, run
from lmserve.bridge.remote import RemoteEngine
from lmserve.bridge.supervision import CLOSE_GRACE_S, POLL_S

logger = logging.getLogger(__name__)


class ThreadEngine(RemoteEngine):
    """The engine in a thread."""

    NOUN = "engine thread"
    _thread: threading.Thread | None = None
    _failure: str | None = None  # what ended the last thread; written by it

    async def _launch(self) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with contextlib.ExitStack() as closed:  # where it cannot be started
            closed.enter_context(ours)
            closed.enter_context(theirs)
            channel = EngineChannel(theirs)
            closed.callback(channel.close)
            self._failure = None
            self._thread = threading.Thread(
                target=self._host, args=(channel,), name="engine", daemon=True
            )
            self._thread.start()
            closed.pop_all()
        return ours

    def _host(self, channel: EngineChannel) -> None:
        try:
            self._failure = run(channel, channel.receive_first(Boot), freeze=False)
        except ServerGone:
            pass
        finally:
            channel.close()

    async def _bury(self, *, at_once: bool) -> str:
        thread, self._thread = self._thread, None
        assert thread is not None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_GRACE_S):
                while thread.is_alive():  # noqa: ASYNC110  there may be no thread for a join
                    await asyncio.sleep(POLL_S)
        if thread.is_alive():
            logger.warning("the engine thread is in a long step or load; it ends after it")
        return self._failure or "it ended"
