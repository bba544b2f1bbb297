"""The loop in a thread: results, errors, and Ctrl-C that cancels and waits."""

from __future__ import annotations

import asyncio
import signal
import threading

import pytest

from lmserve.cli.loop import LoopThread
from lmserve.errors import EngineError


async def double(number: int) -> int:
    await asyncio.sleep(0)
    return 2 * number


async def fail() -> None:
    raise EngineError("broken")


def test_call_gives_the_result_or_the_error():
    with LoopThread() as loop:
        assert loop.call(double(21)) == 42
        with pytest.raises(EngineError, match="broken"):
            loop.call(fail())


def test_ctrl_c_cancels_and_waits_for_the_clean_up():
    told: list[str] = []

    async def endless() -> None:
        try:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            told.append("cleaned up")

    with LoopThread() as loop:
        with pytest.raises(KeyboardInterrupt):
            loop.call(endless())
        assert told == ["cleaned up"]
        assert loop.call(double(1)) == 2  # and the loop goes on


def test_the_end_cancels_tasks_and_closes_generators():
    told: list[str] = []

    async def words():
        try:
            yield "one"
        finally:
            told.append("generator")

    async def forever() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            told.append("task")

    generator = words()

    async def begin() -> asyncio.Task[None]:
        assert await anext(generator) == "one"
        task = asyncio.create_task(forever())
        await asyncio.sleep(0)
        return task

    with LoopThread() as loop:
        task = loop.call(begin())
    assert told == ["task", "generator"]
    assert task.cancelled()
