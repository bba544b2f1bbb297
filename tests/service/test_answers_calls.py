"""Answers that think and call functions: told apart, kept so, gone on with, steered."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from lmserve.bridge.fake import FakeEngine
from lmserve.errors import InvalidField
from lmserve.service.answers import log as answer_log
from lmserve.service.answers.answer import Answer
from lmserve.service.answers.records import Ask, Record
from lmserve.service.items import Call, Item
from lmserve.service.sessions.sessions import SessionKey
from lmserve.settings import ServerSettings
from lmserve.types import Content, Reasoning, Tool
from tests.service.plain import Place, ask, finish, names, opened, say, stored, told
from tests.service.talk import prompts, user

SERVER = ServerSettings(tool_call_parser="hermes", reasoning_parser="think")
TOOLS = {"tools": (Tool("f"), Tool("g")), "splits": True}
CALL = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'
OTHER = '<tool_call>\n{"name": "g", "arguments": {}}\n</tool_call>'


@pytest.fixture
async def place(engine: FakeEngine, tmp_path: Path) -> AsyncIterator[Place]:
    async with opened(Place(tmp_path / "data", engine, server=SERVER)) as place:
        yield place


def asking(*texts: str, fields: dict[str, Any] | None = None, **about: Any) -> Ask:
    return ask(*texts, fields=TOOLS | (fields or {}), **about)


def outputs(*given: tuple[str, str], then: str | None = None) -> dict[str, Any]:
    messages = [{"role": "tool", "content": text, "tool_call_id": id} for id, text in given]
    return {"messages": [*messages, *([user(then)] if then else ())]}


def calls(record: Record) -> list[str]:
    return [item.id for item in record.said if isinstance(item, Call)]


def without_ids(items: Any) -> list[Item]:
    return [
        Call("", item.name, item.arguments, item.cut) if isinstance(item, Call) else item
        for item in items
    ]


async def written(place: Place, answer: Answer) -> None:
    """Until all that was told is on disk."""
    log = answer._log
    while log._told or log._writing is not None:
        await place.sessions.keeper.run(lambda store: None)


async def until(answer: Answer, num_events: int, name: str) -> None:
    """So many events of this name were told."""
    with answer.stream.reading() as reader:
        while names(answer.stream).count(name) < num_events:
            await reader.wait()
            reader.take()


async def test_parts_are_told_and_kept(place: Place, engine: FakeEngine) -> None:
    engine.will_say("<think>H", "m</think>", "Let me see. ", CALL[:30], CALL[30:] + OTHER)
    record = await say(place, asking("hi"))
    assert without_ids(record.said) == [
        Reasoning("Hm"),
        Content("Let me see."),
        Call("", "f", '{"a": 1}'),
        Call("", "g", "{}"),
    ]
    assert record.status == "completed"
    assert record.text == "<think>Hm</think>Let me see. " + CALL + OTHER
    assert record.usage is not None and record.usage.reasoning_tokens > 0
    assert (await stored(place, record))[0] == record
    [_, node] = await place.sessions.line(SessionKey("", record.session))
    assert node.items == record.items
    assert [call["id"] for call in node.message["tool_calls"]] == calls(record)
    assert (node.message["content"], node.message["reasoning_content"]) == ("Let me see.", "Hm")


async def test_what_is_plain_is_kept_as_ever(place: Place, engine: FakeEngine) -> None:
    engine.will_say("Hello")
    record = await say(place, asking("hi"))
    assert record.items is None and record.said == (Content("Hello"),)
    [_, node] = await place.sessions.line(SessionKey("", record.session))
    assert node.message == {"role": "assistant", "content": "Hello"}


async def test_outputs_follow_from_the_very_tokens(place: Place, engine: FakeEngine) -> None:
    engine.will_say(CALL + OTHER).will_say("Done")
    first = await say(place, asking("hi"))
    one, two = calls(first)
    second = await say(
        place, asking(previous=first.id, fields=outputs((two, "2"), (one, "1"), then="well?"))
    )
    assert second.text == "Done"
    before, after = await prompts(engine, place.service)
    assert after.startswith(before + CALL + OTHER + "<|im_end|>\n")
    assert "well?" in after[len(before) :]


async def test_calls_wait_for_their_outputs(place: Place, engine: FakeEngine) -> None:
    engine.will_say(CALL + OTHER).will_say("Done")
    first = await say(place, asking("hi"))
    one, two = calls(first)
    session = {"session": first.session}
    for about in ({"previous": first.id}, session):
        with pytest.raises(InvalidField, match=f"No tool output found for function call {one}"):
            await place.answers.begin(asking("never mind", **about))
        with pytest.raises(InvalidField, match=f"function call {two}"):
            await place.answers.begin(asking(fields=outputs((one, "1")), **about))
        with pytest.raises(InvalidField, match="No tool call found .* call_id call_x"):
            await place.answers.begin(asking(fields=outputs(("call_x", "1")), **about))
    assert len(engine.submits) == 1
    await say(place, asking(fields=outputs((one, "1"), (two, "2")), **session))


async def test_a_call_that_was_cut_waits_for_nothing(place: Place, engine: FakeEngine) -> None:
    engine.will_say("Well ", CALL[:-15], finish="length").will_say("Done").will_say(CALL[-15:])
    first = await say(place, asking("hi"))
    assert first.status == "incomplete"
    assert without_ids(first.said)[1:] == [Call("", "f", '{"a": 1', cut=True)]
    assert (await stored(place, first))[0] == first
    await say(place, asking("go on", previous=first.id))
    again = await say(
        place, asking(session=first.session, continues=first.message_id, fields={"messages": []})
    )
    assert without_ids(again.said) == [Content("Well"), Call("", "f", '{"a": 1}')]
    assert again.text == "Well " + CALL and again.status == "completed"


async def test_thoughts_are_gone_on_with(place: Place, engine: FakeEngine) -> None:
    engine.will_say("<think>H", "m", finish="length").will_say(" so</think>", "Yes")
    first = await say(place, asking("hi"))
    assert first.said == (Reasoning("Hm"),)
    again = await say(
        place, asking(session=first.session, continues=first.message_id, fields={"messages": []})
    )
    assert again.said == (Reasoning("Hm so"), Content("Yes"))
    assert again.text == "<think>Hm so</think>Yes"


async def test_tools_may_change(place: Place, engine: FakeEngine) -> None:
    """The model is told of those that it may call now."""
    engine.will_say("A").will_say("B").will_say("C")
    first = await say(place, asking("hi"))
    second = await say(place, ask("yo", previous=first.id))
    await say(place, asking("yo", previous=first.id))
    with_tools, without, again = await prompts(engine, place.service)
    assert again.startswith(with_tools) and not without.startswith(with_tools)
    assert '"f"' in with_tools and '"f"' not in without
    assert second.text == "B"


async def test_a_fork_and_a_copy_have_the_same_items(place: Place, engine: FakeEngine) -> None:
    engine.will_say("Well ", CALL).will_say("A").will_say("B").will_say("C")
    first = await say(place, asking("hi"))
    key, [id] = SessionKey("", first.session), calls(first)
    fork, copy = SessionKey("", "fork"), SessionKey("", "copy")
    await place.sessions.fork(key, fork)
    await place.sessions.import_(copy, await place.sessions.export(key))
    assert (await place.sessions.line(fork))[1].items == first.items
    [_, node] = await place.sessions.line(copy)
    assert node.message == (await place.sessions.line(key))[1].message
    for session in ("fork", "copy"):
        await say(place, asking(session=session, fields=outputs((id, "1"))))
    moved = await say(place, asking(previous=first.id, keep=False, fields=outputs((id, "1"))))
    assert moved.text == "C"
    assert '"name": "f"' in (await prompts(engine, place.service))[2]


async def test_what_steers_a_call_waits_for_its_output(place: Place, engine: FakeEngine) -> None:
    engine.will_hang("Well", CALL)
    answer = await place.answers.begin(asking("hi"))
    await until(answer, 1, "CallArguments")
    steer = await place.answers.steer("", answer.record.id, [user("hurry")], "hurry")
    with pytest.raises(InvalidField, match="No tool call found"):
        unknown = outputs(("call_x", "1"))["messages"]
        await place.answers.steer("", answer.record.id, unknown, unknown)
    await place.answers.update("", answer.record.id, {"max_tokens": 1}, {})
    record = await finish(answer)
    [id] = calls(record)
    assert record.reason == "max_output_tokens" and await answer.successor() is None
    assert names(answer.stream)[-2:] == ["incomplete", "SteerPending"]
    assert steer in told(answer.stream)[-1][1] and repr({id: "f"}) in told(answer.stream)[-1][1]
    with pytest.raises(InvalidField, match="No tool output"):
        await place.answers.begin(asking("now?", previous=record.id))
    engine.will_say("Done")
    after = asking(previous=record.id, fields=outputs((id, "1"), then="now?"))
    successor = await place.answers.begin(after)
    await finish(successor)
    line = await place.sessions.line(SessionKey("", record.session))
    assert [node.message["content"] for node in line[2:]] == ["1", "hurry", "now?", "Done"]
    assert "SteerApplied" in names(successor.stream)
    assert steer in told(successor.stream)[2][1]
    assert (await place.answers.record("", record.id)).successor == successor.record.id


async def test_an_output_may_come_in_mid_answer(place: Place, engine: FakeEngine) -> None:
    """The answer ends its calls first; what steers it brings their outputs, so nothing waits."""
    engine.will_hang(CALL).will_say("Done")
    answer = await place.answers.begin(asking("hi"))
    await until(answer, 1, "CallArguments")
    [id] = answer._items.calls
    given = outputs((id, "1"), then="well?")["messages"]
    await place.answers.steer("", answer.record.id, given, given)
    await place.answers.update("", answer.record.id, {"max_tokens": 1}, {})
    successor = await answer.successor()
    assert successor is not None
    await finish(successor)
    line = await place.sessions.line(SessionKey("", answer.record.session))
    assert [node.message["content"] for node in line[2:]] == ["1", "well?", "D"]


async def test_a_dead_servers_call_is_told_as_far_as_it_came(
    place: Place, engine: FakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answer_log, "FLUSH_S", 0.0)
    engine.will_hang("<think>Hm</think>Well ", CALL[:-15])
    answer = await place.answers.begin(asking("hi"))
    await until(answer, 1, "CallArguments")
    await written(place, answer)
    shutil.copytree(tmp_path / "data", tmp_path / "after")
    async with opened(Place(tmp_path / "after", engine, server=SERVER)) as after:
        record = await after.answers.record("", answer.record.id)
        assert without_ids(record.said)[2:] == [Call("", "f", '{"a": 1', cut=True)]
        assert calls(record) == answer._items.calls
        assert record.reason == "server_restart"
        events = told(await after.answers.stream("", record.id))
        assert events[:-2] == told(answer.stream)
        engine.will_say("Done")
        assert (await say(after, asking("so?", previous=record.id))).text == "Done"


async def test_a_dead_servers_steer_waits_for_outputs(
    place: Place, engine: FakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The call was whole: that is told as if the server had come to it."""
    monkeypatch.setattr(answer_log, "FLUSH_S", 0.0)
    engine.will_hang(CALL)
    answer = await place.answers.begin(asking("hi"))
    await until(answer, 1, "CallArguments")
    steer = await place.answers.steer("", answer.record.id, [user("hurry")], "hurry")
    await written(place, answer)
    shutil.copytree(tmp_path / "data", tmp_path / "after")
    async with opened(Place(tmp_path / "after", engine, server=SERVER)) as after:
        record, events = await stored(after, await after.answers.record("", answer.record.id))
        assert [name for name, _ in events[-2:]] == ["incomplete", "SteerPending"]
        [id] = calls(record)
        assert steer in events[-1][1] and repr({id: "f"}) in events[-1][1]
        engine.will_say("Done")
        await say(after, asking(previous=record.id, fields=outputs((id, "1"))))
        line = await after.sessions.line(SessionKey("", record.session))
        assert [node.message["content"] for node in line[2:]] == ["1", "hurry", "Done"]


@pytest.mark.parametrize("then", ["now?", None])
async def test_outputs_may_be_appended_to_the_session(
    place: Place, engine: FakeEngine, then: str | None
) -> None:
    """What waits for them goes with the next answer, right after them."""
    engine.will_hang(CALL, OTHER)
    answer = await place.answers.begin(asking("hi"))
    await until(answer, 2, "CallArguments")
    await place.answers.steer("", answer.record.id, [user("hurry")], "hurry")
    await place.answers.update("", answer.record.id, {"max_tokens": 1}, {})
    record = await finish(answer)
    one, two = calls(record)
    key = SessionKey("", record.session)
    await place.sessions.add(key, outputs((two, "2"), (one, "1"))["messages"])
    engine.will_say("Done")
    messages = {"messages": [user(then)] if then else []}
    successor = await place.answers.begin(asking(session=key.id, fields=messages))
    await finish(successor)
    assert "SteerApplied" in names(successor.stream)
    line = await place.sessions.line(key)
    said = ["2", "1", "hurry", *([then] if then else []), "Done"]
    assert [node.message["content"] for node in line[2:]] == said


async def test_what_waits_survives_the_server(
    place: Place, engine: FakeEngine, tmp_path: Path
) -> None:
    engine.will_hang(CALL)
    answer = await place.answers.begin(asking("hi"))
    await until(answer, 1, "CallArguments")
    await place.answers.steer("", answer.record.id, [user("hurry")], "hurry")
    await place.answers.update("", answer.record.id, {"max_tokens": 1}, {})
    record = await finish(answer)
    await place.sessions.keeper.run(lambda store: None)
    shutil.copytree(tmp_path / "data", tmp_path / "after")
    async with opened(Place(tmp_path / "after", engine, server=SERVER)) as after:
        assert (await stored(after, record))[1] == told(answer.stream)
        engine.will_say("Done")
        await say(after, asking(previous=record.id, fields=outputs((calls(record)[0], "1"))))
        line = await after.sessions.line(SessionKey("", record.session))
        assert [node.message["content"] for node in line[2:]] == ["1", "hurry", "Done"]
