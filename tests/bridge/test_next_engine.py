"""Which requests survive their engine, and how the next one comes so soon."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lmserve.bench.processes import engine_of
from lmserve.bridge.child import ChildEngine
from lmserve.bridge.remote import RemoteEngine
from lmserve.errors import EngineUnavailable
from lmserve.sampling import SamplingParams
from tests.bridge.conftest import no_new_threads
from tests.bridge.test_child import gone

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.bridge.conftest import Bench


async def test_what_was_told_nothing_is_sent_to_the_next_engine_in_order(child: Bench) -> None:
    begun = child.ask(1, max_tokens=child.FOREVER)
    await begun.get()
    os.kill(child.pid, signal.SIGSTOP)
    waits = [child.ask(i, max_tokens=3) for i in (10, 20, 30)]
    child.engine.update(waits[1], SamplingParams(max_tokens=1))
    child.engine.abort(waits[2])
    os.kill(child.pid, signal.SIGKILL)
    _, last = await child.read(begun)
    assert last.died
    assert (last.error or "").endswith("send it again")
    later = child.ask(40, max_tokens=1)  # while there is none
    assert child.engine.info is not None
    assert (await child.read(waits[0]))[0] == [10, 11, 12]
    assert (await child.read(waits[1]))[0] == [20]
    assert (await child.read(waits[2]))[1].finish == "abort"
    assert (await child.read(later))[0] == [40]


@pytest.mark.slow
async def test_what_comes_meanwhile_can_be_changed_and_ended(child: Bench) -> None:
    os.kill(child.pid, signal.SIGKILL)
    await child.until("restarting")
    kept, ended = child.ask(7, max_tokens=child.FOREVER), child.ask(8)
    child.engine.update(kept, SamplingParams(max_tokens=2))
    child.engine.abort(ended)
    assert (await child.read(ended))[1].finish == "abort"
    assert (await child.read(kept))[0] == [7, 8]
    assert (await child.engine.control("ping")) == "pong"


async def test_an_engine_that_loads_is_sent_nothing(
    child: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.kill(child.pid, signal.SIGKILL)
    await child.until("restarting")
    assert isinstance(child.engine, ChildEngine)
    while child.engine._channel is None:  # noqa: ASYNC110
        await asyncio.sleep(0)
    sent: list[object] = []
    monkeypatch.setattr(child.engine._channel, "send", sent.append)
    child.engine.abort(child.ask(1))
    assert sent == []


async def test_requests_wait_only_so_long_for_the_next_engine(
    make_bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lmserve.bridge.restarts.Restarts.FIRST_PAUSE_S", 1000.0)
    bench = make_bench("child", restart_wait_s=0.2)
    await bench.engine.start()
    await bench.engine.wait_ready()
    os.kill(bench.pid, signal.SIGKILL)
    await bench.until("restarting")
    _, last = await bench.read(bench.ask())
    assert (last.finish, last.died, last.retry_after_s) == ("error", False, 5)
    assert "the next is not ready yet" in (last.error or "")
    with pytest.raises(EngineUnavailable, match="restarting"):
        bench.ask()


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"restart_wait_s": 0.0}, {"restart": False}])
async def test_nothing_waits_where_that_is_turned_off(
    make_bench: Callable[..., Bench], settings: dict[str, float | bool]
) -> None:
    bench = make_bench("child", **settings)
    await bench.engine.start()
    await bench.engine.wait_ready()
    mailbox = bench.ask(bench.WAITS)
    os.kill(bench.pid, signal.SIGKILL)
    assert (await bench.read(mailbox))[1].died
    with pytest.raises(EngineUnavailable):
        bench.ask()


@pytest.mark.slow
async def test_what_waits_is_told_when_no_engine_comes(
    make_bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lmserve.bridge.restarts.Restarts.MAX_DEATHS", 1)
    bench = make_bench("child")
    await bench.engine.start()
    await bench.engine.wait_ready()
    mailbox = bench.ask(bench.WAITS)
    os.kill(bench.pid, signal.SIGKILL)
    _, last = await bench.read(mailbox)
    assert "again and again" in (last.error or "")
    assert last.retry_after_s == 60
    assert bench.engine.info is None


@pytest.mark.parametrize("kind", ["child", "thread"])
async def test_where_there_is_no_thread_it_is_tried_again(
    make_bench: Callable[..., Bench], kind: str
) -> None:
    bench = make_bench(kind, standby=False)
    await bench.engine.start()
    await bench.engine.wait_ready()
    engine = bench.engine
    assert isinstance(engine, RemoteEngine)
    with no_new_threads():
        assert engine._channel is not None
        engine._channel.close()
        while "cannot be started: can't start new thread" not in engine.health().reason:
            await engine.changed()
        assert engine.health().state == "restarting"
        mailbox = bench.ask(5, max_tokens=3)
    assert (await bench.read(mailbox))[0] == [5, 6, 7]


async def test_a_supervisor_that_ended_badly_has_a_successor(
    child: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lmserve.bridge.restarts.Restarts.FIRST_PAUSE_S", 1000.0)
    os.kill(child.pid, signal.SIGKILL)
    while "killed by SIGKILL" not in child.engine.health().reason:
        await child.engine.changed()
    assert isinstance(child.engine, ChildEngine)
    supervisor = child.engine._supervisor
    assert supervisor is not None
    supervisor.cancel()
    await asyncio.wait([supervisor])
    await child.engine.sleep()
    await child.engine.wake()
    assert (await child.read(child.ask(5, max_tokens=3)))[0] == [5, 6, 7]


async def test_a_supervisor_that_is_wanted_no_more_fails_alone(
    child: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engine, goes_on = child.engine, asyncio.Event()
    assert isinstance(engine, ChildEngine)
    bury = engine._bury

    async def fail(*, at_once: bool) -> str:
        await bury(at_once=at_once)
        await goes_on.wait()
        raise ValueError("a bug of the supervision")

    with monkeypatch.context() as patched, caplog.at_level(logging.ERROR):
        patched.setattr(engine, "_bury", fail)
        sleeping = asyncio.create_task(engine.sleep())
        await child.until("sleeping")
        waking = asyncio.create_task(engine.wake())
        await child.until("loading")
        goes_on.set()
        await sleeping
    await waking
    assert "a bug of the supervision" in caplog.text
    assert (await child.read(child.ask(5, max_tokens=3)))[0] == [5, 6, 7]


async def standing_by(bench: Bench) -> int:
    """The process that waits to be the next engine."""
    assert isinstance(bench.engine, ChildEngine)
    while bench.engine._standby is None:
        await bench.engine.control("ping")
    return (await bench.engine._standby).process.pid


@pytest.fixture
async def prepared(make_bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setattr(ChildEngine, "STANDBY_AFTER_S", 0.0)
    bench = make_bench("child")
    await bench.engine.start()
    assert (await bench.engine.wait_ready()).architecture == "scripted"
    return bench


async def test_the_next_engine_stands_by(prepared: Bench) -> None:
    for _ in range(2):
        next_pid = await standing_by(prepared)
        assert engine_of(os.getpid()) == prepared.pid
        mailbox = prepared.ask(5, max_tokens=3)
        os.kill(prepared.pid, signal.SIGKILL)
        await prepared.until("restarting")
        info = await prepared.engine.wait_ready()
        assert (info.pid, info.architecture) == (next_pid, "scripted, stood by")
        assert (await prepared.read(mailbox))[1].finish in ("length", "error")


@pytest.mark.slow
async def test_where_the_one_that_stands_by_is_gone_another_is_started(prepared: Bench) -> None:
    next_pid = await standing_by(prepared)
    os.kill(next_pid, signal.SIGKILL)
    await asyncio.to_thread(os.waitid, os.P_PID, next_pid, os.WEXITED | os.WNOWAIT)
    os.kill(prepared.pid, signal.SIGKILL)
    await prepared.until("restarting")
    info = await prepared.engine.wait_ready()
    assert (info.pid != next_pid, info.architecture) == (True, "scripted")


async def test_it_can_be_put_to_sleep_where_there_is_no_thread(prepared: Bench) -> None:
    pids = prepared.pid, await standing_by(prepared)
    with no_new_threads():
        await prepared.engine.sleep()
        assert all(gone(pid) for pid in pids)
    await prepared.engine.wake()
    assert (await prepared.read(prepared.ask(5, max_tokens=3)))[0] == [5, 6, 7]


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["close", "sleep"])
async def test_none_stands_by_for_an_engine_that_is_not_wanted(prepared: Bench, verb: str) -> None:
    next_pid = await standing_by(prepared)
    await getattr(prepared.engine, verb)()
    assert gone(next_pid)


SERVER = """
import asyncio
from lmserve.bridge.child import ChildEngine
from lmserve.settings import EngineSettings

async def main():
    ChildEngine.STANDBY_AFTER_S = 0.0
    engine = ChildEngine(EngineSettings(), "scripted_core:ScriptedCore")
    await engine.start()
    info = await engine.wait_ready()
    while engine._standby is None:
        await engine.control("ping")
    print(info.pid, (await engine._standby).process.pid, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_neither_outlives_a_server_that_is_killed() -> None:
    server = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SERVER, stdout=asyncio.subprocess.PIPE
    )
    assert server.stdout is not None
    pids = [int(word) for word in (await server.stdout.readline()).split()]
    assert len(pids) == 2
    assert all(is_running(pid) for pid in pids)
    server.kill()
    await server.wait()
    async with asyncio.timeout(40):
        while any(is_running(pid) for pid in pids):  # noqa: ASYNC110  no children of ours
            await asyncio.sleep(0.02)


def is_running(pid: int) -> bool:
    """A zombie, which waits for whoever adopted it, is not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
