"""What only an engine in a process can do: be killed, be stopped, and come back."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import signal
from typing import TYPE_CHECKING

import pytest

from lmserve.errors import EngineUnavailable, ModelError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.bridge.conftest import Bench


def gone(pid: int) -> bool:
    """Whether no process has this id, not even a zombie."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


async def test_a_kill_is_told_once_to_each_and_survived(
    child: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    mailboxes = [child.ask(i, max_tokens=child.FOREVER) for i in range(20)]
    await asyncio.gather(*(mailbox.get() for mailbox in mailboxes))
    killed = child.pid
    with caplog.at_level(logging.ERROR):
        os.kill(killed, signal.SIGKILL)
        for mailbox in mailboxes:
            _, last = await child.read(mailbox)
            assert (last.finish, last.died) == ("error", True)
            assert last.error is not None
            assert "engine process died" in last.error
        assert child.engine.health().state == "restarting"
        await child.engine.wait_ready()
    assert "killed by SIGKILL" in caplog.text
    assert gone(killed)
    assert child.pid != killed
    assert (await child.read(child.ask(5, max_tokens=3)))[0] == [5, 6, 7]


@pytest.mark.parametrize(("prompt", "how"), [(991, "exit code 1"), (992, "exit code 3")])
async def test_a_crash_in_a_step_is_a_death(
    child: Bench, caplog: pytest.LogCaptureFixture, prompt: int, how: str
) -> None:
    waiting = child.ask(child.WAITS)  # never begun with
    with caplog.at_level(logging.ERROR):
        _, last = await child.read(child.ask(prompt))
        assert last.died
        assert "so did the engine process before, and it is not tried again" in (last.error or "")
        await child.engine.wait_ready()
        assert not waiting.finished
        child.engine.abort(waiting)
    assert caplog.text.count(how) == 2


async def test_a_death_is_told_to_each_though_a_reader_fails(child: Bench) -> None:
    def fail() -> None:
        raise ValueError("a bug of this reader")

    mailboxes = [child.ask(i, max_tokens=child.FOREVER) for i in range(3)]
    await asyncio.gather(*(mailbox.get() for mailbox in mailboxes))
    mailboxes[0].listener = fail
    os.kill(child.pid, signal.SIGKILL)
    for mailbox in mailboxes[1:]:
        assert (await child.read(mailbox))[1].died
    assert mailboxes[0].take().died
    await child.engine.wait_ready()


async def test_what_an_engine_started_does_not_hide_its_death(
    make_bench: Callable[..., Bench],
) -> None:
    bench = make_bench("child", model="starts", restart=False)
    await bench.engine.start()
    started = int((await bench.engine.wait_ready()).device)
    try:
        os.kill(bench.pid, signal.SIGKILL)
        await bench.until("failed")
    finally:
        os.kill(started, signal.SIGKILL)


async def test_control_does_not_outlive_the_engine(child: Bench) -> None:
    os.kill(child.pid, signal.SIGSTOP)
    asking = asyncio.create_task(child.engine.control("ping", timeout_s=50))
    await asyncio.sleep(0)
    os.kill(child.pid, signal.SIGKILL)
    with pytest.raises(EngineUnavailable, match="stopped before it answered"):
        await asking


async def test_a_control_may_be_too_late(child: Bench) -> None:
    os.kill(child.pid, signal.SIGSTOP)
    with pytest.raises(EngineUnavailable, match="did not answer 'ping' within"):
        await child.engine.control("ping", timeout_s=0.01)
    os.kill(child.pid, signal.SIGCONT)


async def test_a_stopped_engine_is_stuck_until_it_goes_on(child: Bench) -> None:
    mailbox = child.ask(1, max_tokens=child.FOREVER)
    await mailbox.get()
    os.kill(child.pid, signal.SIGSTOP)
    await child.until("stuck")
    health = child.engine.health()
    assert "has not answered for" in health.reason
    assert health.heard_s > 0.4
    later = child.ask(1, max_tokens=1)
    os.kill(child.pid, signal.SIGCONT)
    await child.until("ready")
    assert not mailbox.finished
    await mailbox.get()
    assert (await later.get()).finish == "length"


async def test_an_idle_engine_keeps_its_pulse(
    child: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    mailbox = child.ask(1, max_tokens=child.FOREVER)
    await mailbox.get()
    assert child.engine.stats.num_running == 1
    child.engine.abort(mailbox)
    heard = asyncio.Event()
    on_pulse = child.engine._on_pulse  # type: ignore[attr-defined]
    monkeypatch.setattr(
        child.engine, "_on_pulse", lambda reply: (on_pulse(reply), heard.set()), raising=True
    )
    await heard.wait()
    assert child.engine.stats.num_running == 0  # no step told it after the abort
    assert child.engine.health().ok


async def test_closing_a_stuck_engine_kills_it(child: Bench) -> None:
    pid = child.pid
    os.kill(pid, signal.SIGSTOP)
    await child.until("stuck")
    await child.engine.close()
    assert gone(pid)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
async def test_signals_to_stop_are_the_servers_and_close_leaves_no_process(
    child: Bench, how: signal.Signals
) -> None:
    pid = child.pid
    os.kill(pid, how)
    assert await child.engine.control("ping") == "pong"
    assert child.pid == pid
    await child.engine.close()
    assert gone(pid)


async def test_an_engine_silent_too_long_is_killed_and_replaced(
    make_bench: Callable[..., Bench], caplog: pytest.LogCaptureFixture
) -> None:
    bench = make_bench("child", stuck_after_s=0.2, kill_after_s=0.8)
    await bench.engine.start()
    await bench.engine.wait_ready()
    silent = bench.pid
    mailbox = bench.ask(1, max_tokens=bench.FOREVER)
    await mailbox.get()
    assert bench.engine.stats.num_running == 1
    with caplog.at_level(logging.ERROR):
        os.kill(silent, signal.SIGSTOP)
        assert (await bench.read(mailbox))[1].died
        assert bench.engine.stats.num_running == 0
        waits = bench.ask(5, max_tokens=3)
        await bench.engine.wait_ready()
    assert "given up" in caplog.text
    assert "it did not answer and was killed" in caplog.text
    assert gone(silent)
    assert (await bench.read(waits))[0] == [5, 6, 7]


async def test_restarting_tells_how_far_it_is(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench("child")
    await bench.engine.start()
    await bench.engine.wait_ready()
    os.kill(bench.pid, signal.SIGKILL)
    reasons = []
    while not bench.engine.health().ok or not reasons:
        await bench.engine.changed()
        if bench.engine.health().state == "restarting":
            reasons.append(bench.engine.health().reason)
    death = "the engine process died (killed by SIGKILL, perhaps by the system for want of memory)"
    assert death in reasons
    assert f"{death}; the next is reading the model" in reasons


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("missing", "model 'missing' is not there: name one that is"),
        ("broken", "the model cannot be loaded: ValueError: bad magic"),
        ("killed", "the engine process died while loading: killed by SIGKILL, perhaps by .*"),
    ],
)
async def test_a_failed_load_is_one_line(
    make_bench: Callable[..., Bench], capfd: pytest.CaptureFixture[str], model: str, message: str
) -> None:
    bench = make_bench("child", model=model)
    await bench.engine.start()
    with pytest.raises(ModelError) as caught:
        await bench.engine.wait_ready()
    assert re.fullmatch(message, caught.value.message)
    assert bench.engine.health().state == "failed"
    with pytest.raises(EngineUnavailable, match="failed"):
        bench.ask()
    assert capfd.readouterr() == ("", "")


async def test_loading_tells_its_stage_and_can_be_closed(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench("child", model="waits")
    await bench.engine.start()
    while bench.engine.health().reason != "reading the model":
        await bench.engine.changed()
    assert bench.engine.health().state == "loading"
    await bench.engine.close()
    assert bench.engine.health().state == "closed"


async def test_it_gives_up_after_deaths_in_a_row(
    make_bench: Callable[..., Bench], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "model"
    model.touch()
    monkeypatch.setattr("lmserve.bridge.restarts.Restarts.FIRST_PAUSE_S", 0.001)
    bench = make_bench("child", model=str(model))
    await bench.engine.start()
    await bench.engine.wait_ready()
    os.kill(bench.pid, signal.SIGKILL)
    await bench.until("failed")
    with pytest.raises(ModelError, match="again and again: the model was there only once"):
        await bench.engine.wait_ready()


async def test_restarting_can_be_turned_off(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench("child", restart=False)
    await bench.engine.start()
    await bench.engine.wait_ready()
    os.kill(bench.pid, signal.SIGKILL)
    await bench.until("failed")
    with pytest.raises(ModelError, match="killed by SIGKILL"):
        await bench.engine.wait_ready()


async def test_a_sleeping_engine_has_no_process(child: Bench) -> None:
    pid = child.pid
    await child.engine.sleep()
    assert gone(pid)
    await child.engine.wake()
    assert child.pid != pid


async def test_a_stuck_engine_can_be_put_to_sleep(child: Bench) -> None:
    pid = child.pid
    mailbox = child.ask(child.WAITS)
    os.kill(pid, signal.SIGSTOP)
    await child.until("stuck")
    await child.engine.sleep()
    assert gone(pid)
    assert (await child.read(mailbox))[1].finish == "abort"
    await child.engine.wake()
    assert (await child.read(child.ask(5, max_tokens=3)))[0] == [5, 6, 7]


async def test_a_loading_engine_can_be_put_to_sleep(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench("child", model="waits")
    await bench.engine.start()
    while bench.engine.health().reason != "reading the model":
        await bench.engine.changed()
    await bench.engine.sleep()
    assert bench.engine.health().state == "sleeping"
    waking = asyncio.create_task(bench.engine.wake())
    await bench.until("loading")
    while bench.engine.health().reason != "reading the model":
        await bench.engine.changed()
    await bench.engine.sleep()
    with pytest.raises(EngineUnavailable, match="asleep"):
        await waking


async def test_a_restarting_engine_can_be_put_to_sleep(
    make_bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lmserve.bridge.restarts.Restarts.FIRST_PAUSE_S", 1000.0)
    bench = make_bench("child")
    await bench.engine.start()
    await bench.engine.wait_ready()
    os.kill(bench.pid, signal.SIGKILL)
    await bench.until("restarting")
    await bench.engine.sleep()
    await bench.engine.wake()
    assert (await bench.read(bench.ask(5, max_tokens=3)))[0] == [5, 6, 7]


async def test_an_engine_that_cannot_wake_says_why_and_may_be_tried_again(
    make_bench: Callable[..., Bench], tmp_path: Path
) -> None:
    model = tmp_path / "model"
    model.touch()  # the core removes it when it loads
    bench = make_bench("child", model=str(model))
    await bench.engine.start()
    await bench.engine.wait_ready()
    await bench.engine.sleep()
    with pytest.raises(EngineUnavailable, match="failed.*the model was there only once"):
        await bench.engine.wake()
    assert bench.engine.health().state == "failed"
    with pytest.raises(EngineUnavailable, match="only once"):
        await bench.engine.wake()
    model.touch()
    await bench.engine.sleep()
    await bench.engine.wake()
    assert bench.engine.health().ok


@pytest.mark.parametrize(
    ("chosen", "spins"),
    [({}, "20000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, "")],
)
async def test_waiting_threads_spin_briefly_unless_told_otherwise(
    make_bench: Callable[..., Bench],
    monkeypatch: pytest.MonkeyPatch,
    chosen: dict[str, str],
    spins: str,
) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in chosen.items():
        monkeypatch.setenv(name, value)
    bench = make_bench("child")
    await bench.engine.start()
    assert (await bench.engine.wait_ready()).weights == spins
