"""Over a fake engine with KV, on a clock that passes when told."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from lmserve.service.metrics import Metrics
from lmserve.service.store.store import SessionKey
from lmserve.service.warm import warmth as warmths
from lmserve.service.warm.kv_files import name_of
from lmserve.service.warm.spill import PAUSE_S
from lmserve.service.warm.warmth import Warmth
from lmserve.settings import Settings, WarmSettings
from tests.service.conftest import Clock
from tests.service.kv_engine import BYTES, KvEngine

A, B, C = (SessionKey("", id) for id in "abc")
OPTIONS = WarmSettings(pin_s=60.0, spill_after_s=10.0, spill_max_bytes=1000)


@pytest.fixture
async def engine() -> AsyncIterator[KvEngine]:
    engine = KvEngine()
    await engine.start()
    yield engine
    await engine.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


class World:
    """An engine that answers turns, and what keeps them warm."""

    def __init__(self, engine: KvEngine, folder: Path, metrics: Metrics, clock: Clock):
        self.engine = engine
        self.folder = folder
        self.metrics = metrics
        self.clock = clock
        self.warmth: Warmth

    async def turn(self, key: SessionKey, ids: range | list[int], *, spill: bool = True) -> None:
        await self.warmth.ready(key, list(ids))
        self.engine.known.append(list(ids))
        self.warmth.used(key, list(ids), spill=spill)
        await self.quiet()

    async def quiet(self) -> None:
        """Until all that was begun is done, but for what goes on forever."""
        forever = {"Warmth._sweep_forever", "Warmth._remove_orphans_forever"}

        def busy() -> bool:
            names = {task.get_coro().__qualname__ for task in self.warmth._tasks}
            return self.warmth._poked.is_set() or not names <= forever

        await until(lambda: not busy())

    async def after(self, seconds: float) -> None:
        self.clock.now_s += seconds
        await self.warmth.sweep()
        await self.quiet()

    def restart_engine(self) -> None:
        self.engine.die()
        self.engine.resume()

    def pinned(self) -> set[SessionKey]:
        return {key for key in (A, B, C) if name_of(key) in self.engine.pins}

    def on_disk(self) -> set[SessionKey]:
        names = {path.stem for path in (self.folder / "kv").glob("*.kv")}
        return {key for key in (A, B, C) if name_of(key) in names}

    def count(self, verb: str) -> int:
        return self.engine.calls.count(verb)


@asynccontextmanager
async def living(
    world: World,
    options: WarmSettings = OPTIONS,
    keys: Collection[SessionKey] = (A, B, C),
    *,
    on_disk: bool = True,
) -> AsyncIterator[World]:
    async def all_keys() -> Collection[SessionKey]:
        return keys

    world.warmth = warmth = Warmth(world.engine, options, world.metrics, clock=world.clock)
    await warmth.open(world.folder if on_disk else None, all_keys)
    try:
        yield world
    finally:
        await warmth.close()
        assert not warmth._tasks


@pytest.fixture
def world(engine: KvEngine, tmp_path: Path, settings: Settings, clock: Clock) -> World:
    return World(engine, tmp_path, Metrics(engine, settings), clock)


async def test_a_turn_is_pinned_then_written_then_only_on_disk(world: World) -> None:
    async with living(world):
        await world.turn(A, range(20))
        assert (world.pinned(), world.on_disk()) == ({A}, set())
        assert world.metrics.kv_tokens_pinned == 20
        await world.after(10)
        assert (world.pinned(), world.on_disk()) == ({A}, {A})
        await world.after(20)
        assert world.count("save") == 1  # once a turn
        await world.after(30)
        assert (world.pinned(), world.on_disk()) == (set(), {A})
        assert world.metrics.kv_tokens_pinned == 0
        assert world.metrics.kv_bytes_spilled == 20 * BYTES


async def test_the_next_turn_begins_all_anew(world: World) -> None:
    async with living(world):
        await world.turn(A, range(20))
        await world.after(50)
        await world.turn(A, range(30))
        await world.after(20)
        assert world.pinned() == {A}
        assert world.engine.pins[name_of(A)] == list(range(30))
        assert world.count("save") == 2
        assert world.count("restore") == 0  # the engine had it all the time


@pytest.mark.parametrize("lost", ["unpinned", "engine", "server"])
async def test_what_the_engine_lost_is_read_from_disk(world: World, lost: str) -> None:
    async with living(world):
        await world.turn(A, range(20))
        await world.after(100 if lost == "unpinned" else 10)
        if lost == "unpinned":
            world.engine.known.clear()
        if lost == "engine":
            world.restart_engine()
        if lost != "server":
            await world.turn(A, range(30))
    if lost == "server":
        world.restart_engine()
        async with living(world):
            await world.turn(A, range(30))
    assert world.count("restore") == 1
    assert list(range(20)) in world.engine.known
    assert world.metrics.kv_restores["hit"] == 1
    assert world.count("save") == 2  # what is newer, at the end


async def test_what_is_unpinned_and_still_there_is_pinned_again(world: World) -> None:
    async with living(world):
        await world.turn(A, range(20))
        await world.after(100)
        await world.warmth.ready(A, list(range(30)))
        await world.quiet()
        assert world.engine.pins[name_of(A)] == list(range(20))
        assert world.metrics.kv_restores["miss"] == 1
    assert world.count("save") == 1  # it has its file


async def test_what_the_engine_evicted_is_not_written(world: World) -> None:
    async with living(world):
        await world.turn(A, range(20))
        world.engine.known.clear()
        await world.after(10)
        assert world.on_disk() == set()
        await world.after(50)
        assert world.count("unpin") == 1


async def test_several_who_want_it_read_it_once(world: World) -> None:
    async with living(world):
        await world.turn(A, range(20))
        await world.after(100)
        world.engine.slow = asyncio.Event()
        ready = [asyncio.create_task(world.warmth.ready(A, list(range(30)))) for _ in range(3)]
        await until(lambda: world.count("restore") == 1)
        ready[0].cancel()
        world.engine.slow.set()
        await asyncio.wait(ready)
        assert world.count("restore") == 1
        await world.quiet()
        assert world.pinned() == {A}


async def test_a_refused_file_goes_and_the_turn_goes_on(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    async with living(world):
        await world.turn(A, range(20))
        await world.after(100)
        world.engine.fault = "its checksum is another"
        await world.turn(A, range(30))
        assert "its checksum is another" in caplog.text
        assert world.on_disk() == set()
        assert world.metrics.kv_restores["refused"] == 1
        assert world.pinned() == {A}


async def test_a_full_disk_is_told_once_and_left_alone_for_a_while(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    async with living(world):
        world.engine.fault = "cannot write: no space left on device"
        for key in (A, B):
            await world.turn(key, range(20))
        await world.after(10)
        assert world.count("save") == 1
        warnings = [one for one in caplog.records if one.levelno >= logging.WARNING]
        assert len(warnings) == 1
        assert world.pinned() == {A, B}
        world.engine.fault = None
        for key in (A, B):
            await world.turn(key, range(20))
        await world.after(PAUSE_S)
        assert world.on_disk() == {A, B}


async def test_a_folder_that_cannot_be_had_costs_the_files_only(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    (world.folder / "kv").write_text("in the way")
    async with living(world):
        assert "not kept" in caplog.text
        await world.turn(A, range(20))
        await world.after(10)
        assert world.pinned() == {A}
        assert world.count("save") == 0


async def test_without_a_folder_nothing_is_written(world: World) -> None:
    async with living(world, on_disk=False):
        await world.turn(A, range(20))
        await world.after(10)
        assert world.pinned() == {A}
        await world.after(60)
        assert world.pinned() == set()
    assert world.count("save") == 0


async def test_what_is_not_to_be_kept_is_never_written(world: World) -> None:
    async with living(world):
        await world.turn(A, range(20), spill=False)
        await world.after(10)
        assert world.pinned() == {A}
    assert world.count("save") == 0


async def test_the_end_writes_what_is_newer_than_its_file(world: World) -> None:
    async with living(world):
        await world.turn(A, range(20))
        await world.turn(B, range(50, 60))
        await world.after(10)
        await world.turn(B, range(50, 70))
    assert world.on_disk() == {A, B}
    assert world.count("save") == 3


async def test_the_end_does_not_wait_for_long(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warmths, "WRITE_ALL_WITHIN_S", 0.5)
    async with living(world):
        await world.turn(A, range(20))
        world.engine.slow = asyncio.Event()
    assert world.count("save") == 1
    await world.warmth.close()
    world.warmth.used(A, [1])
    await world.warmth.ready(A, [1])
    assert world.count("pin") == 1


async def test_too_many_pins_go_to_disk_that_unused_longest_first(world: World) -> None:
    async with living(world):  # half of 100 blocks
        for num, key in enumerate((A, B, C)):
            await world.turn(key, range(100 * num, 100 * num + 20))
            world.clock.now_s += 1
        await until(lambda: world.pinned() == {B, C})
        assert world.on_disk() == {A}


async def test_what_conversations_share_counts_once(world: World) -> None:
    async with living(world):
        for last, key in enumerate((A, B, C)):
            await world.turn(key, [*range(40), 1000 + last])
        assert world.pinned() == {A, B, C}


async def test_an_owner_takes_no_room_from_those_who_have_less(world: World) -> None:
    other = SessionKey("somebody", "b")
    async with living(world, keys=(A, B, C, other)):
        await world.turn(other, range(20))  # the oldest
        for num, key in enumerate((A, B, C), 1):
            world.clock.now_s += 1
            await world.turn(key, range(100 * num, 100 * num + 15))
        await until(lambda: world.pinned() == {B, C})
        assert name_of(other) in world.engine.pins


async def test_a_session_that_takes_too_much_alone_is_not_kept(world: World) -> None:
    async with living(world):
        await world.turn(A, range(60))
        await until(lambda: world.pinned() == set())
        assert world.on_disk() == {A}


async def test_a_deleted_session_leaves_nothing(world: World) -> None:
    async with living(world):
        await world.turn(A, range(20))
        await world.after(10)
        world.warmth.gone(A)
        world.warmth.gone(B)  # of which nothing is known
        await world.quiet()
        assert (world.pinned(), world.on_disk()) == (set(), set())
        assert world.metrics.kv_tokens_pinned == 0


async def test_a_session_deleted_while_it_is_written_leaves_nothing(world: World) -> None:
    async with living(world):
        await world.turn(A, range(20))
        world.engine.slow = asyncio.Event()
        writing = asyncio.create_task(world.after(10))
        await until(lambda: world.count("save") == 1)
        world.warmth.gone(A)
        world.engine.slow.set()
        await writing
        assert (world.pinned(), world.on_disk()) == (set(), set())


async def test_a_session_used_while_it_is_written_stays_pinned(world: World) -> None:
    async with living(world):
        await world.turn(A, range(20))
        world.engine.slow = asyncio.Event()
        writing = asyncio.create_task(world.after(60))
        await until(lambda: world.count("save") == 1)
        world.engine.known.append(list(range(30)))
        world.warmth.used(A, list(range(30)))
        world.engine.slow.set()
        await writing
        assert world.engine.pins[name_of(A)] == list(range(30))
        await world.after(10)
        assert world.count("save") == 2


async def test_a_fork_begins_with_the_same_file(world: World) -> None:
    async with living(world):
        await world.turn(A, range(20))
        await world.after(100)
        world.warmth.forked(A, B)
        await world.quiet()
        world.warmth.gone(A)
        await world.turn(B, range(30))
        assert world.count("restore") == 1
        assert world.on_disk() == {B}


async def test_files_of_sessions_that_are_gone_go_at_the_start(world: World) -> None:
    async with living(world):
        for key in (A, B):
            await world.turn(key, range(20))
    async with living(world, keys=[B]):
        await until(lambda: world.on_disk() == {B})


async def test_an_engine_that_is_gone_is_no_error(world: World) -> None:
    async with living(world):
        await world.turn(A, range(20))
        world.engine.die()
        world.warmth.used(B, [1, 2])
        await world.warmth.ready(A, [1, 2])
        await world.after(100)
        world.engine.resume()
        await world.turn(A, range(20))
        assert world.pinned() == {A}
        assert world.on_disk() == set()


async def test_turns_are_told(world: World) -> None:
    told: list[tuple[str, SessionKey]] = []
    async with living(world):
        world.warmth.before_turn = lambda key: told.append(("before", key))
        world.warmth.after_turn = lambda key: told.append(("after", key))
        await world.warmth.restore(A, [1])
        await world.warmth.ready(B, [1])
        world.warmth.used(C, [1])
        assert told == [("before", B), ("after", C)]
