"""Log probabilities of answers that are kept: told, kept with the events, forgotten with them."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from lmserve.bridge import inventions
from lmserve.bridge.fake import FakeEngine
from lmserve.service.answers import log as answer_log
from lmserve.service.answers.records import Record
from lmserve.service.content_tokens import named
from lmserve.service.items import Call
from lmserve.service.sessions.sessions import SessionKey
from lmserve.service.store.keeper import KEEP_EVENTS_S
from lmserve.types import Content, NamedLogprob
from tests.service.plain import Place, ask, finish, names, opened, say, stored
from tests.service.test_answers_calls import CALL, SERVER, TOOLS, until, written

ASKED: dict[str, Any] = {"logprobs": 2, "splits": True}


@pytest.fixture
async def place(engine: FakeEngine, tmp_path: Path) -> AsyncIterator[Place]:
    async with opened(Place(tmp_path / "data", engine, server=SERVER)) as place:
        yield place


def rates(text: str) -> tuple[NamedLogprob, ...]:
    return named(inventions.logprobs_of([*text.encode()], 2), lambda id: bytes([id]))


def texts(record: Record) -> list[Content]:
    return [item for item in record.said if isinstance(item, Content)]


@pytest.mark.parametrize("keep", [True, False])
async def test_they_are_kept_with_the_events(place: Place, engine: FakeEngine, keep: bool) -> None:
    engine.will_say("Hél", "lo")
    record = await say(place, ask("hi", fields=ASKED, keep=keep))
    assert texts(record) == [Content("Héllo", rates("Héllo"))]
    assert (await stored(place, record))[0] == record
    if not keep:
        return  # it is forgotten before its events are
    home, _ = await place.answers._archive.find("", record.id)
    place.now_s += KEEP_EVENTS_S + 1
    await home.keeper.sweep()
    assert texts((await place.answers._archive.find("", record.id))[1]) == [Content("Héllo")]


async def test_only_the_messages_own_tokens_are_told(place: Place, engine: FakeEngine) -> None:
    engine.will_say("<think>Hm</think>\n", "Wait. ", CALL).will_say("Done")
    record = await say(place, ask("hi", fields=TOOLS | ASKED))
    assert texts(record) == [Content("Wait.", rates("Wait."))]
    assert (await stored(place, record))[0] == record
    [call] = [item for item in record.said if isinstance(item, Call)]
    output = {"role": "tool", "content": "1", "tool_call_id": call.id}
    after = await say(place, ask(previous=record.id, fields=TOOLS | {"messages": [output]}))
    assert texts(after) == [Content("Done")]  # nobody asked for them
    line = await place.sessions.line(SessionKey("", record.session))
    assert "logprobs" not in repr([node.message for node in line])


@pytest.mark.parametrize("splits", [True, False])
async def test_what_an_answer_goes_on_from_has_none(
    place: Place, engine: FakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, splits: bool
) -> None:
    monkeypatch.setattr(answer_log, "FLUSH_S", 0.0)
    asked = ASKED | {"splits": splits}
    engine.will_say("ab", finish="length").will_hang("cd")
    first = await say(place, ask("hi", fields=asked))
    again = await place.answers.begin(
        ask(session=first.session, continues=first.message_id, fields=asked | {"messages": []})
    )
    await until(again, 2, "Content")
    await written(place, again)
    shutil.copytree(tmp_path / "data", tmp_path / "after")
    async with opened(Place(tmp_path / "after", engine, server=SERVER)) as after:
        record = await after.answers.record("", again.record.id)
        assert texts(record) == [Content("abcd", rates("cd"))]
    again.stop()
    assert texts(await finish(again)) == texts(record)


async def test_a_dead_servers_are_kept(
    place: Place, engine: FakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answer_log, "FLUSH_S", 0.0)
    engine.will_hang("Héllo")
    answer = await place.answers.begin(ask("hi", fields=ASKED))
    await until(answer, 1, "Content")
    await written(place, answer)
    shutil.copytree(tmp_path / "data", tmp_path / "after")
    async with opened(Place(tmp_path / "after", engine, server=SERVER)) as after:
        record = await after.answers.record("", answer.record.id)
        assert texts(record) == [Content("Héllo", rates("Héllo"))]
        assert record.reason == "server_restart"
    answer.stop()
    assert texts(await finish(answer)) == texts(record)
    assert names(answer.stream)[-1] == "cancelled"
