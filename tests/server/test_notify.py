"""What a service manager hears, over a socket as systemd's."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from lmserve.edge.notify import notify, tell_alive
from tests.server.test_serve import serving


@pytest.fixture(params=["path", "abstract"])
def manager(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[socket.socket]:
    name = str(tmp_path / "notify") if request.param == "path" else f"\0lmserve-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(name)
        sock.settimeout(30)
        monkeypatch.setenv("NOTIFY_SOCKET", name.replace("\0", "@"))
        yield sock


async def hear(manager: socket.socket, wanted: str) -> str:
    """The next message that has it."""
    while wanted not in (heard := (await asyncio.to_thread(manager.recv, 4096)).decode()):
        pass
    return heard


async def test_a_server_tells_its_life(
    manager: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "30000")
    async with serving(1.0, 0.0) as served:
        assert served.url in await hear(manager, "READY=1")
        await hear(manager, "WATCHDOG=1")
        served.process.send_signal(signal.SIGTERM)
        await hear(manager, "STOPPING=1")
        assert await served.process.wait() == 0


async def test_a_server_that_is_not_well_is_silent(
    manager: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "3000")
    answers = iter([True, False])
    asked = asyncio.Event()

    def is_well() -> bool:
        answer = next(answers, None)
        if answer is None:
            asked.set()
        return bool(answer)

    telling = asyncio.create_task(tell_alive(is_well))
    await asked.wait()
    telling.cancel()
    manager.setblocking(False)
    assert manager.recv(100) == b"WATCHDOG=1"
    with pytest.raises(BlockingIOError):
        manager.recv(100)


@pytest.mark.parametrize("address", [None, "", "relative", "/no/such/socket", "@none"])
async def test_without_a_manager_nothing_happens(
    monkeypatch: pytest.MonkeyPatch, address: str | None
) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    if address is not None:
        monkeypatch.setenv("NOTIFY_SOCKET", address)
    notify("READY=1")
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    await tell_alive(lambda: True)
    monkeypatch.setenv("WATCHDOG_USEC", "1000")
    monkeypatch.setenv("WATCHDOG_PID", "1")  # for another process
    await tell_alive(lambda: True)
