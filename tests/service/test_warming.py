"""What those who keep conversations warm are told."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from msgspec import UNSET

from lmserve.bridge.fake import FakeEngine
from lmserve.errors import AnswerConflict, MessageNotFound, SessionNotFound
from lmserve.messages import unpack_ids
from lmserve.service.sessions.sessions import SessionKey
from lmserve.service.store.rows import SessionKey as Key
from tests.service.plain import Place, ask, opened, say
from tests.service.talk import ask as request
from tests.service.talk import say as turn


class Told:
    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []

    async def ready(self, key: Key, token_ids: Sequence[int], cache_salt: str = "") -> None:
        self.calls.append(("ready", key.id, list(token_ids)))

    def used(
        self, key: Key, token_ids: Sequence[int], *, spill: bool = True, cache_salt: str = ""
    ) -> None:
        self.calls.append(("used", key.id, list(token_ids), spill))

    def forked(self, key: Key, new_key: Key) -> None:
        self.calls.append(("forked", key.id, new_key.id))

    def gone(self, key: Key) -> None:
        self.calls.append(("gone", key.id))


@pytest.fixture
def warmth() -> Told:
    return Told()


@pytest.fixture
async def place(engine: FakeEngine, tmp_path: Path, warmth: Told) -> AsyncIterator[Place]:
    async with opened(Place(tmp_path / "data", engine, warmth=warmth)) as place:
        yield place


async def test_it_is_told_of_every_turn(place: Place, engine: FakeEngine, warmth: Told) -> None:
    engine.will_say("A").will_say("B").will_say("C").will_say("D")
    first = await say(place, ask("one"))
    key = SessionKey("", first.session)
    await say(place, ask("two", previous=first.id))
    await turn(place.sessions, request("three"), key)
    await place.sessions.fork(key, SessionKey("", "2"))
    memory = await say(place, ask("four", keep=False))
    await place.sessions.delete(key)
    prompts = [unpack_ids(submit.token_ids) for submit in engine.submits]
    ran = [
        [*prompt, *answer] for prompt, answer in zip(prompts, (b"A", b"B", b"C", b"D"), strict=True)
    ]
    assert warmth.calls == [
        ("used", key.id, ran[0], True),
        ("ready", key.id, ran[0]),
        ("used", key.id, ran[1], True),
        ("ready", key.id, ran[1]),
        ("used", key.id, ran[2], True),
        ("forked", key.id, "2"),
        ("used", memory.session, ran[3], False),
        ("gone", key.id),
    ]


async def test_a_look_ahead_waits_for_no_turn(place: Place, engine: FakeEngine) -> None:
    engine.will_say("A").will_hang("b")
    first = await say(place, ask("one"))
    key = SessionKey("", first.session)
    running = await place.answers.begin(ask("two", session=first.session))
    text, line = await place.sessions.peek(key, UNSET)
    assert text is await place.service.model_text()
    assert [message["content"] for message in line.messages] == ["one", "A"]
    assert (await place.sessions.peek(key, None))[1].messages == []
    with pytest.raises(MessageNotFound):
        await place.sessions.peek(key, 99)
    with pytest.raises(SessionNotFound):
        await place.sessions.peek(SessionKey("", "none"))
    with pytest.raises(AnswerConflict):
        await place.sessions.peek(key, running.record.message_id)
