"""SIGHUP: files are read again, unless it is a terminal that was closed."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from lmserve.edge.signals import hangups_kept, on_hangup, stop_signals

BEGINNING = """
import os, signal, sys
from lmserve.cli.main import main
def hang_up(event, args):  # on the way to listening
    if event == "socket.bind": os.kill(os.getpid(), signal.SIGHUP)
sys.addaudithook(hang_up)
main()
"""


@pytest.mark.parametrize("in_terminal", [False, True])
async def test_it_has_files_read_again(monkeypatch: pytest.MonkeyPatch, in_terminal: bool) -> None:
    monkeypatch.setattr(os, "isatty", lambda handle: in_terminal)
    before, heard = signal.getsignal(signal.SIGHUP), asyncio.Event()
    with stop_signals() as stopped:
        on_hangup(heard.set)
        os.kill(os.getpid(), signal.SIGHUP)
        await asyncio.wait_for(heard.wait(), 30)
        assert not stopped.is_set()
    assert signal.getsignal(signal.SIGHUP) is before


async def test_a_terminal_that_is_closed_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    is_open = True
    monkeypatch.setattr(os, "isatty", lambda handle: is_open)
    heard = asyncio.Event()
    with stop_signals() as stopped:
        on_hangup(heard.set)
        is_open = False
        os.kill(os.getpid(), signal.SIGHUP)
        await asyncio.wait_for(stopped.wait(), 30)
    assert not heard.is_set()


async def test_one_that_comes_early_is_heard_later() -> None:
    before, heard = signal.getsignal(signal.SIGHUP), asyncio.Event()
    with hangups_kept():
        os.kill(os.getpid(), signal.SIGHUP)
        with stop_signals() as stopped:
            on_hangup(heard.set)
            assert heard.is_set() and not stopped.is_set()
    assert signal.getsignal(signal.SIGHUP) is before


async def test_none_that_came_is_none_heard() -> None:
    heard = asyncio.Event()
    with hangups_kept(), stop_signals():
        on_hangup(heard.set)
        assert not heard.is_set()


async def test_a_terminal_that_is_closed_early_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    is_open = True
    monkeypatch.setattr(os, "isatty", lambda handle: is_open)
    with hangups_kept(), stop_signals() as stopped:
        is_open = False
        os.kill(os.getpid(), signal.SIGHUP)
        await asyncio.wait_for(stopped.wait(), 30)


async def test_commands_that_begin_go_on(tmp_path: Path) -> None:
    async def begun(*words: str) -> None:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", BEGINNING, "serve", *words, "--server-port", "0"),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
        )
        try:
            assert process.stdout is not None
            async with asyncio.timeout(40):
                assert b"http://127.0.0.1:" in await process.stdout.readline(), words
                process.terminate()
                await process.communicate()
            assert process.returncode == 0, words
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()

    await asyncio.gather(
        begun("proxy"), begun("api_server", "--engine", "mock", "--data-dir", str(tmp_path))
    )
