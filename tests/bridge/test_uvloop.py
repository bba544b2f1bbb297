"""The server runs on uvloop: the same child on that loop, killed once."""

from __future__ import annotations

import asyncio
import os
import signal

import uvloop

from lmserve.bridge.child import ChildEngine
from lmserve.sampling import SamplingParams
from lmserve.settings import EngineSettings

ENDLESS = SamplingParams(max_tokens=10**9)


def test_a_child_streams_dies_and_comes_back() -> None:
    async def story() -> None:
        engine = ChildEngine(EngineSettings(), "scripted_core:ScriptedCore")
        await engine.start()
        info = await engine.wait_ready()
        mailboxes = [engine.submit([i], ENDLESS) for i in range(100)]
        await asyncio.gather(*(mailbox.get() for mailbox in mailboxes))
        os.kill(info.pid, signal.SIGKILL)
        for mailbox in mailboxes:
            while (delivery := await mailbox.get()).finish is None:
                pass
            assert delivery.died
        await engine.wait_ready()
        last = await engine.submit([5], SamplingParams(max_tokens=1)).get()
        assert (last.token_ids, last.finish) == ([5], "length")
        await engine.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(story())
