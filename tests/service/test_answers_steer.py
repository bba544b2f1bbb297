"""Answers steered and changed while they are made."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from lmserve.bridge.fake import FakeEngine
from lmserve.errors import AnswerConflict, DeadlineExceeded, InvalidField, Overloaded
from lmserve.messages import unpack_ids
from lmserve.service.answers.answers import Answer
from lmserve.service.sessions.sessions import SessionKey
from lmserve.service.warm.warming import Cold
from tests.service.plain import Place, ask, finish, names, opened, said, say, stored, told
from tests.service.talk import assistant, chatml, prompts, user


async def until_said(answer: Answer, text: str) -> None:
    with answer.stream.reading() as reader:
        while said(answer.stream) != text:
            await reader.wait()
            reader.take()


async def steer(place: Place, answer: Answer, text: str) -> str:
    return await place.answers.steer("", answer.record.id, [user(text)], text)


async def test_a_steered_answer_is_gone_on_with(place: Place, engine: FakeEngine) -> None:
    engine.will_hang("one ", "two").will_say("B")
    answer = await place.answers.begin(ask("hi", fields={"temperature": 0.5}, told={"a": 1}))
    await until_said(answer, "one two")
    id = await steer(place, answer, "stop")
    record = await answer.ended()
    assert (record.status, record.reason, record.text) == ("incomplete", "steered", "one two")
    successor = await answer.successor()
    assert successor is not None
    after = await finish(successor)
    assert (after.previous, after.session, after.told, after.text) == (
        record.id, record.session, {"a": 1}, "B",
    )  # fmt: skip
    assert names(answer.stream)[-3:] == ["Steered", "text", "incomplete"]
    assert answer.stream.ended
    assert names(successor.stream)[:3] == ["created", "in_progress", "SteerApplied"]
    (applied,) = [about for name, about in told(successor.stream) if name == "SteerApplied"]
    assert f"id='{id}'" in applied
    assert "token_index=7" in applied
    one, two = (unpack_ids(submit.token_ids) for submit in engine.submits)
    assert two[: len(one) + 7] == [*one, *b"one two"]
    assert (await prompts(engine, place.service))[1] == chatml("hi", "one two", "stop")
    assert engine.submits[1].sampling.temperature == 0.5
    assert await stored(place, record) == (record, told(answer.stream))


async def test_several_inputs_become_one_successor(place: Place, engine: FakeEngine) -> None:
    engine.will_hang("a").will_say("B")
    answer = await place.answers.begin(ask("hi"))
    steering = answer._steering
    for text in ("one", "two"):
        await steering.take([user(text)], text, lambda _: None)
    await steer(place, answer, "three")
    successor = await answer.successor()
    assert successor is not None
    record = await finish(successor)
    assert len(record.input_ids) == 3
    assert names(successor.stream).count("SteerApplied") == 3
    line = await place.sessions.line(SessionKey("", record.session))
    assert [node.message["content"] for node in line] == ["hi", "a", "one", "two", "three", "B"]


async def test_an_answer_that_ends_by_itself_meanwhile_is_followed(
    place: Place, engine: FakeEngine
) -> None:
    engine.will_say("A").will_say("B")
    answer = await place.answers.begin(ask("hi"))
    await answer._steering.take([user("more")], "more", lambda _: None)  # it does not stop for it
    record = await finish(answer)
    assert record.status == "completed"
    successor = await answer.successor()
    assert successor is not None
    assert (await finish(successor)).text == "B"
    assert (await prompts(engine, place.service))[1] == chatml("hi", "A", "more")


async def test_the_successor_keeps_the_sessions_turn(place: Place, engine: FakeEngine) -> None:
    key = SessionKey("", "talk")
    await place.sessions.create(key)
    engine.will_hang("a").will_hang("b").will_say("C")
    answer = await place.answers.begin(ask("hi", session="talk"))
    await steer(place, answer, "stop")
    successor = await answer.successor()
    assert successor is not None
    slot = place.sessions.turns.current(key)
    assert slot is not None
    await until_said(successor, "b")
    assert place.sessions.cancel(key)
    await successor.ended()
    assert (await say(place, ask("x", session="talk"))).text == "C"
    line = await place.sessions.line(key)
    assert [node.message["content"] for node in line] == ["hi", "a", "stop", "b", "x", "C"]


async def test_what_cannot_be_said_is_told_back_last(place: Place, engine: FakeEngine) -> None:
    engine.will_hang("a").will_say("B")
    answer = await place.answers.begin(ask("hi"))
    long = "x" * 9000
    await steer(place, answer, long)
    assert await answer.successor() is None
    with answer.stream.reading() as reader:
        while not reader.at_end:
            await reader.wait()
            reader.take()
    assert names(answer.stream)[-2:] == ["incomplete", "SteerFailed"]
    assert f"input='{long}'" in told(answer.stream)[-1][1]
    record = answer.record
    assert await stored(place, record) == (record, told(answer.stream))
    assert (await say(place, ask("short", previous=record.id))).text == "B"


async def test_a_cancelled_answer_is_not_followed(place: Place, engine: FakeEngine) -> None:
    engine.will_hang("a")
    answer = await place.answers.begin(ask("hi"))
    await answer._steering.take([user("more")], "more", lambda _: None)
    assert (await place.answers.cancel("", answer.record.id)).status == "cancelled"
    assert await answer.successor() is None
    assert names(answer.stream)[-2:] == ["cancelled", "SteerFailed"]
    assert len(engine.submits) == 1


class Slow(Cold):
    """What a turn begins with takes until `go`."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.go = asyncio.Event()

    async def ready(self, key: SessionKey, token_ids: Sequence[int], cache_salt: str = "") -> None:
        self.asked.set()
        await self.go.wait()


async def test_a_stop_reaches_a_successor_that_is_being_prepared(
    engine: FakeEngine, tmp_path: Path
) -> None:
    engine.will_hang("a").will_hang("b")
    warmth = Slow()
    async with opened(Place(tmp_path / "data", engine, warmth=warmth)) as place:
        answer = await place.answers.begin(ask("hi"))
        await until_said(answer, "a")
        await steer(place, answer, "stop")
        await warmth.asked.wait()
        assert place.sessions.cancel(SessionKey("", answer.record.session))
        warmth.go.set()
        successor = await answer.successor()
        assert successor is not None
        assert (await successor.ended()).status == "cancelled"


async def test_a_deadline_may_pass_while_an_answer_is_prepared(
    engine: FakeEngine, tmp_path: Path
) -> None:
    engine.will_say("A")
    async with opened(Place(tmp_path / "data", engine, warmth=Slow())) as place:
        first = await say(place, ask("hi"))
        with pytest.raises(DeadlineExceeded):
            await place.answers.begin(
                ask("more", session=first.session, fields={"deadline_s": 0.05})
            )
        assert not place.sessions.turns.busy
        assert len(engine.submits) == 1


async def test_what_is_no_steer_is_refused(place: Place, engine: FakeEngine) -> None:
    engine.will_hang("a")
    answer = await place.answers.begin(ask("hi"))
    id = answer.record.id
    for messages in ([], [assistant("x")], [{"role": "user", "content": 3}], [user("\ud800")]):
        with pytest.raises(InvalidField):
            await place.answers.steer("", id, messages, "x")
    for _ in range(8):
        await answer._steering.take([user("x")], "x", lambda _: None)
    with pytest.raises(Overloaded):
        await steer(place, answer, "x")
    await place.answers.cancel("", id)
    with pytest.raises(AnswerConflict):
        await steer(place, answer, "x")
    place.streams.end(answer.stream)
    await answer.successor()
    place.streams.forget(answer.stream)
    with pytest.raises(AnswerConflict):
        await steer(place, answer, "x")


async def test_settings_change_in_mid_answer(place: Place, engine: FakeEngine) -> None:
    engine.will_hang("a").will_say("B")
    answer = await place.answers.begin(ask("hi", told={"temperature": 1.0, "user": "me"}))
    await until_said(answer, "a")
    id = answer.record.id
    changes = {"max_tokens": 5, "temperature": 0.25, "stop": ["x"]}
    await place.answers.update("", id, changes, {"temperature": 0.25})
    name, about = told(answer.stream)[-1]
    assert name == "Updated"
    assert "token_index=1" in about
    now_told = {"temperature": 0.25, "user": "me"}
    assert answer.record.told == now_told
    assert (await place.answers._archive.find("", id))[1].told == now_told
    with pytest.raises(InvalidField):
        await place.answers.update("", id, {"temperature": 9.0}, {"temperature": 9.0})
    await steer(place, answer, "stop")
    successor = await answer.successor()
    assert successor is not None
    assert (await finish(successor)).told == now_told
    assert (await place.answers.record("", id)).told == now_told
    assert engine.submits[1].sampling.temperature == 0.25
    assert engine.submits[1].sampling.max_tokens == 5
    with pytest.raises(AnswerConflict):
        await place.answers.update("", id, {"max_tokens": 5}, {})
    place.streams.forget(answer.stream)
    with pytest.raises(AnswerConflict):
        await place.answers.update("", id, {"max_tokens": 5}, {})
