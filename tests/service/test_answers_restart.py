"""A server that dies in mid-answer, and the next one in its folder."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from lmserve.bridge.fake import FakeEngine
from lmserve.errors import StoreError
from lmserve.messages import unpack_ids
from lmserve.service.answers import log as answer_log
from lmserve.service.answers.answers import Answer
from lmserve.service.sessions.sessions import SessionKey
from lmserve.service.store import keeper
from tests.service.plain import Place, ask, finish, names, opened, said, say, told
from tests.service.talk import user

Killed = Callable[[], AbstractAsyncContextManager[Place]]


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer_log, "FLUSH_S", 0.0)


@pytest.fixture
def killed(place: Place, engine: FakeEngine, tmp_path: Path) -> Killed:
    """The server as another finds it, that takes its place now."""

    def next_one() -> AbstractAsyncContextManager[Place]:
        shutil.copytree(tmp_path / "data", tmp_path / "after")
        return opened(Place(tmp_path / "after", engine))

    return next_one


async def written(place: Place, answer: Answer) -> None:
    """Until all that was told is on disk."""
    log = answer._log
    while log._told or log._writing is not None:
        await place.sessions.keeper.run(lambda store: None)


async def until_said(answer: Answer, text: str) -> None:
    with answer.stream.reading() as reader:
        while said(answer.stream) != text:
            await reader.wait()
            reader.take()


async def test_a_dead_servers_answer_is_incomplete(
    place: Place, engine: FakeEngine, killed: Killed
) -> None:
    engine.will_say("A").will_hang("one ", "two")
    first = await say(place, ask("hi"))
    answer = await place.answers.begin(ask("more", previous=first.id))
    await until_said(answer, "one two")
    await written(place, answer)
    live = told(answer.stream)
    async with killed() as after:
        record = await after.answers.record("", answer.record.id)
        assert (record.status, record.reason, record.text) == (
            "incomplete", "server_restart", "one two",
        )  # fmt: skip
        assert (record.previous, record.input_ids) == (first.id, answer.record.input_ids)
        replayed = told(await after.answers.stream("", record.id))
        assert replayed == [*live, ("text", "one two"), ("incomplete", "server_restart")]
        info = await after.sessions.info(SessionKey("", first.session))
        assert info.head == record.message_id
        engine.will_say("!").will_say("B")
        further = await say(after, ask(session=first.session, continues=record.message_id))
        assert further.text == "one two!"
        await say(after, ask("and", previous=record.id))
    ids = [unpack_ids(submit.token_ids) for submit in engine.submits]
    assert ids[2] == [*ids[1], *b"one two"]
    assert ids[3][: len(ids[2])] == ids[2]


async def test_a_server_may_die_before_anything_was_said(
    place: Place, engine: FakeEngine, killed: Killed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answer_log, "FLUSH_S", 60.0)
    engine.will_hang("lost").will_say("found")
    answer = await place.answers.begin(ask("hi"))
    await until_said(answer, "lost")
    async with killed() as after:
        record = await after.answers.record("", answer.record.id)
        assert (record.text, record.reason) == ("", "server_restart")
        assert names(await after.answers.stream("", record.id)) == [
            "created", "in_progress", "text", "incomplete",
        ]  # fmt: skip
        further = await say(after, ask(session=record.session, continues=record.message_id))
        assert further.text == "found"
    one, two = (unpack_ids(submit.token_ids) for submit in engine.submits)
    assert one == two


async def test_the_head_stays_where_it_was_moved_meanwhile(
    place: Place, engine: FakeEngine, killed: Killed
) -> None:
    engine.will_say("A").will_hang("b").will_say("C")
    first = await say(place, ask("hi"))
    answer = await place.answers.begin(ask("one", previous=first.id))
    other = await say(place, ask("two", previous=first.id))
    await written(place, answer)
    async with killed() as after:
        info = await after.sessions.info(SessionKey("", first.session))
        assert info.head == other.message_id
        assert info.num_messages == 6


async def test_an_ended_answer_is_told_again(
    place: Place, engine: FakeEngine, killed: Killed
) -> None:
    engine.will_say("A")
    asked = ask("hi", idempotency=("key", b"1"))
    answer = await place.answers.begin(asked)
    record = await finish(answer)
    async with killed() as after:
        assert await after.answers.record("", record.id) == record
        again = await after.answers.begin(asked)
        assert again.record == record
        assert await again.ended() == record
        assert told(again.stream) == told(answer.stream)
        assert told(again.stream, 2) == told(answer.stream)[3:]
    assert len(engine.submits) == 1


async def test_input_taken_on_follows_the_cut_answer(
    place: Place, engine: FakeEngine, killed: Killed
) -> None:
    engine.will_hang("a")
    answer = await place.answers.begin(ask("hi"))
    await until_said(answer, "a")
    await written(place, answer)
    await answer._steering.take([user("wait"), user("no")], "wait", lambda _: None)
    async with killed() as after:
        line = await after.sessions.line(SessionKey("", answer.record.session))
        assert [node.message["content"] for node in line] == ["hi", "a", "wait", "no"]
        record = await after.answers.record("", answer.record.id)
        assert (record.status, record.message_id) == ("incomplete", line[1].id)
        engine.will_say("B")
        assert (await say(after, ask(session=record.session))).text == "B"


async def test_input_taken_on_before_a_shutdown_is_not_lost(
    place: Place, engine: FakeEngine, killed: Killed
) -> None:
    engine.will_hang("a")
    answer = await place.answers.begin(ask("hi"))
    await until_said(answer, "a")
    await answer._steering.take([user("wait")], "wait", lambda _: None)
    await place.service.drain(0.0)
    assert (await answer.ended()).reason == "server_shutdown"
    assert await answer.successor() is None
    async with killed() as after:
        line = await after.sessions.line(SessionKey("", answer.record.session))
        assert [node.message["content"] for node in line] == ["hi", "a", "wait"]
        assert (await after.answers.record("", answer.record.id)).reason == "server_shutdown"


async def test_a_successor_is_found_again(place: Place, engine: FakeEngine, killed: Killed) -> None:
    engine.will_hang("a").will_say("B")
    asked = ask("hi", idempotency=("key", b"1"))
    answer = await place.answers.begin(asked)
    await place.answers.steer("", answer.record.id, [user("wait")], "wait")
    successor = await answer.successor()
    assert successor is not None
    await finish(successor)
    assert answer.record.successor == successor.record.id
    async with killed() as after:
        again = await (await after.answers.begin(asked)).successor()
        assert again is not None
        assert again.record == successor.record
        await after.answers.delete("", again.record.id)
        assert await (await after.answers.begin(asked)).successor() is None


async def test_input_that_was_run_without_an_answer_survives(
    place: Place, engine: FakeEngine, killed: Killed
) -> None:
    engine.will_hang()
    answer = await place.answers.begin(ask("hi", generate=False))
    async with killed() as after:
        record = await after.answers.record("", answer.record.id)
        assert (record.status, record.message_id) == ("incomplete", record.input_ids[-1])
        info = await after.sessions.info(SessionKey("", record.session))
        assert (info.head, info.num_messages) == (record.message_id, 1)


async def test_what_is_told_is_not_written_twice_where_nothing_is_new(
    place: Place, engine: FakeEngine
) -> None:
    engine.will_hang("a", "b")
    answer = await place.answers.begin(ask("hi"))
    await until_said(answer, "ab")
    await written(place, answer)
    rows = await place.sessions.keeper.run(
        lambda store: store._connection.execute(
            "SELECT count(*), sum(num_events) FROM chunks"
        ).fetchone()
    )
    assert rows[1] == answer.stream.next
    assert answer._log._timer is None


# --- a disk that does not keep ------------------------------------------------------------


@pytest.fixture
async def read_only(place: Place) -> AsyncIterator[Callable[[bool], object]]:
    async def turn(on: bool) -> None:
        value = "ON" if on else "OFF"
        await place.sessions.keeper.run(
            lambda store: store._connection.execute(f"PRAGMA query_only = {value}")
        )

    yield turn
    await turn(False)


async def test_what_cannot_be_kept_does_not_begin(
    place: Place, engine: FakeEngine, read_only
) -> None:
    engine.will_hang("a").will_say("B")
    await read_only(True)
    with pytest.raises(StoreError):
        await place.answers.begin(ask("hi"))
    assert len(engine.aborts) == 1
    assert len(place.streams) == 0
    await read_only(False)
    assert (await say(place, ask("hi"))).text == "B"


async def test_an_end_that_is_not_kept_is_told_as_a_failure(
    place: Place, engine: FakeEngine, read_only, killed: Killed
) -> None:
    engine.will_hang("a")
    asked = ask("hi", idempotency=("key", b"1"))
    answer = await place.answers.begin(asked)
    await until_said(answer, "a")
    await written(place, answer)
    await read_only(True)
    answer.stop()
    with answer.stream.reading(), pytest.raises(StoreError):
        await answer.ended()
    assert answer.record.status == "failed"
    assert answer.record.error[0] == "store_error"
    assert names(answer.stream)[-1] == "failed"
    async with killed() as after:
        record = await after.answers.record("", answer.record.id)
        assert (record.reason, record.text) == ("server_restart", "a")
    await read_only(False)
    assert await answer.successor() is None
    place.streams.forget(answer.stream)
    engine.will_say("A").will_say("B")
    again = await place.answers.begin(asked)  # what failed is made anew
    assert (await finish(again)).text == "A"
    assert await place.answers.record("", record.id) == answer.record  # on disk, as it was told
    assert (await say(place, ask("more", previous=record.id))).text == "B"


async def test_a_disk_that_comes_back_gets_the_end_as_it_was_told(
    place: Place, engine: FakeEngine, read_only, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper, "RETRY_S", 0.01)
    engine.will_hang("a")
    answer = await place.answers.begin(ask("hi"))
    await until_said(answer, "a")
    await written(place, answer)
    await read_only(True)
    answer.stop()
    with answer.stream.reading(), pytest.raises(StoreError):
        await answer.ended()
    await read_only(False)
    archive = place.answers._archive
    async with asyncio.timeout(20):
        while (await archive.find("", answer.record.id))[1].ended is None:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    record = (await archive.find("", answer.record.id))[1]
    assert (record.status, record.text) == ("failed", "a")
    assert told(await archive.stream(archive.disk, record)) == told(answer.stream)
    (line,) = await place.sessions.line(SessionKey("", record.session), record.input_ids[-1])
    assert line.message["content"] == "hi"


async def test_chunks_that_were_not_written_are_written_later(
    place: Place, engine: FakeEngine, read_only, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.will_hang("a", "b", "c")
    monkeypatch.setattr(answer_log, "FLUSH_S", 60.0)
    answer = await place.answers.begin(ask("hi"))
    await until_said(answer, "abc")
    monkeypatch.setattr(answer_log, "FLUSH_S", 0.0)
    await read_only(True)
    log = answer._log
    log._timer.cancel()
    log._write(log._keeper)
    failed = log._writing
    with pytest.raises(StoreError):
        await failed
    await read_only(False)
    await written(place, answer)
    record = await place.answers.cancel("", answer.record.id)
    assert told(await place.answers._archive.stream(place.answers._archive.disk, record)) == told(
        answer.stream
    )
