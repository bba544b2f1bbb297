"""Sessions as trees: branches, siblings, forks, exports; who waits and who does not."""

from __future__ import annotations

import asyncio
import copy
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from lmserve.bridge.fake import FakeEngine
from lmserve.errors import (
    InvalidField,
    MessageNotFound,
    SessionBusy,
    SessionExists,
    SessionNotFound,
    StoreError,
)
from lmserve.messages import unpack_ids
from lmserve.service.generate import Service, collect
from lmserve.service.sessions.sessions import SessionKey, Sessions, Turn
from lmserve.settings import SessionSettings
from lmserve.types import GenerateRequest
from tests.service.conftest import Wall
from tests.service.talk import KEY, OTHER, ask, assistant, chatml, contents, prompts, say, user

STRANGER = SessionKey("somebody", KEY.id)
AGAIN = GenerateRequest(messages=[])


async def follow(
    sessions: Sessions, after: int | None, request: GenerateRequest, key: SessionKey = KEY
) -> Turn:
    turn = await sessions.turn(key, request, keep=True, after=after, must_exist=True)
    await collect(turn.generation)
    await turn.settled()
    return turn


def asked(engine: FakeEngine) -> list[list[int]]:
    return [unpack_ids(submit.token_ids) for submit in engine.submits]


# --- branches -----------------------------------------------------------------------------


async def test_a_turn_tells_the_messages_it_stored(sessions: Sessions) -> None:
    await sessions.create(KEY)
    turn = await sessions.turn(KEY, ask("q", "w", max_tokens=1), keep=True, must_exist=True)
    assert (turn.input_ids, turn.answer) == ([], None)
    await collect(turn.generation)
    await turn.settled()
    nodes = await sessions.line(KEY)
    assert [*turn.input_ids, turn.answer.id] == [node.id for node in nodes]
    assert [node.parent for node in nodes] == [None, *turn.input_ids]
    assert [node.message["role"] for node in nodes] == ["user", "user", "assistant"]
    assert nodes[-1].line_tokens == turn.generation.num_prompt_tokens + 1


async def test_an_edit_runs_from_the_message_before_it(
    engine: FakeEngine, service: Service, sessions: Sessions
) -> None:
    engine.will_say([*b"a", 256]).will_say("b").will_say("c").will_say("d")
    _, first = await say(sessions, ask("q"))
    _, second = await say(sessions, ask("w"))
    edited = await follow(sessions, first.answer.id, ask("W"))
    ids = asked(engine)
    assert ids[2][: len(ids[0]) + 2] == [*ids[0], *b"a", 256]
    assert edited.history_tokens == len(ids[0]) + 2
    assert (await prompts(engine, service))[2].endswith(chatml("W"))
    assert await contents(sessions) == ["q", "a", "W", "c"]
    assert len(await sessions.nodes(KEY)) == 6  # the siblings are kept
    anew = await follow(sessions, None, ask("Q"))
    assert (anew.history_tokens, ids[0][0]) == (0, asked(engine)[3][0])
    assert await contents(sessions) == ["Q", "d"]
    line = await sessions.line(KEY, second.answer.id)
    assert [node.message["content"] for node in line] == ["q", "a", "w", "b"]


@pytest.mark.parametrize("num_turns", [1, 2])
async def test_another_answer_runs_the_very_prompt(
    engine: FakeEngine, sessions: Sessions, num_turns: int
) -> None:
    engine.will_say([*b"a", 256])
    for _ in range(num_turns):
        _, turn = await say(sessions, ask("q"))
    engine.will_say("other").will_say("x")
    (question,) = turn.input_ids
    num_tokens = (await sessions.info(KEY)).num_tokens
    again = await follow(sessions, question, AGAIN)
    *_, before, now = asked(engine)
    assert now == before
    assert (again.input_ids, again.input_tokens, again.history_tokens) == ([], 0, len(now))
    first, second = (await sessions.nodes(KEY))[-2:]
    assert first.parent == second.parent == question
    assert second.id == again.answer.id
    assert second.line_tokens == len(now) + 5
    assert (await sessions.info(KEY)).num_tokens == num_tokens + 5  # the prompt is kept once
    await say(sessions, ask("w"))
    assert asked(engine)[-1][: len(now) + 5] == [*now, *b"other"]


async def test_another_answer_after_several_messages(
    engine: FakeEngine, sessions: Sessions
) -> None:
    engine.will_say([*b"a", 256]).will_say("b").will_say("c").will_say("d")
    await say(sessions, ask("q"))
    _, turn = await say(sessions, ask("w", "e"))
    await follow(sessions, turn.input_ids[-1], AGAIN)
    assert asked(engine)[2] == asked(engine)[1]
    await say(sessions, ask("r"))
    assert asked(engine)[3][: len(asked(engine)[2]) + 1] == [*asked(engine)[2], *b"c"]


async def test_what_is_told_exactly_is_not_taken_as_repeated(
    engine: FakeEngine, service: Service, sessions: Sessions
) -> None:
    await sessions.create(KEY, messages=[user("q")])
    assert len(await sessions.add(KEY, [user("q"), user("w")])) == 2
    engine.will_say("a")
    turn = await follow(sessions, None, ask("q"))
    request = GenerateRequest(messages=[user("q"), assistant("a"), user("w")])
    assert len((await follow(sessions, turn.answer.id, request)).input_ids) == 3
    assert (await prompts(engine, service))[1] == chatml("q", "a", "q", "a", "w")


async def test_an_answer_to_what_was_added(
    engine: FakeEngine, service: Service, sessions: Sessions
) -> None:
    engine.will_say("a").will_say("b")
    await sessions.create(KEY, messages=[user("q"), assistant("from elsewhere")])
    added = await sessions.add(KEY, [user("w"), user("w")])
    assert [node.message["content"] for node in added] == ["w", "w"]
    assert added[1].parent == added[0].id
    await follow(sessions, added[0].id, AGAIN)
    await say(sessions, ask("e"))
    assert await prompts(engine, service) == [
        chatml("q", "from elsewhere", "w"),
        chatml("q", "from elsewhere", "w", "a", "e"),
    ]
    assert asked(engine)[1][: len(asked(engine)[0])] == asked(engine)[0]


async def test_another_answer_with_another_template(
    engine: FakeEngine, service: Service, sessions: Sessions
) -> None:
    engine.will_say("a").will_say("b").will_say("c")
    _, turn = await say(sessions, ask("q"))
    assert engine.info is not None
    template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]"
    engine.info = msgspec.structs.replace(engine.info, chat_template=template)
    await follow(sessions, turn.input_ids[0], AGAIN)
    await say(sessions, ask("w"))
    assert (await prompts(engine, service))[1:] == [
        "[user]q[assistant]",
        "[user]q[assistant]b[user]w[assistant]",
    ]
    assert asked(engine)[2][: len(asked(engine)[1]) + 1] == [*asked(engine)[1], *b"b"]


async def test_an_answer_to_nothing_is_refused(sessions: Sessions) -> None:
    await sessions.create(KEY)
    with pytest.raises(InvalidField, match="messages is empty: give at least one"):
        await follow(sessions, None, AGAIN)
    await say(sessions, ask("q", max_tokens=1))
    with pytest.raises(InvalidField, match="what it follows is an answer"):
        await sessions.turn(KEY, AGAIN, keep=True, must_exist=True)
    with pytest.raises(InvalidField, match="messages is empty"):
        await sessions.add(KEY, [])
    await sessions.append(OTHER, [user("q")])
    with pytest.raises(InvalidField, match="messages is empty"):  # as ever
        await sessions.turn(OTHER, AGAIN, keep=True)


async def test_moving_the_head(
    engine: FakeEngine, service: Service, sessions: Sessions, wall: Wall
) -> None:
    _, first = await say(sessions, ask("q", max_tokens=1))
    _, second = await say(sessions, ask("w", max_tokens=1))
    wall.now_s += 5
    info = await sessions.update(KEY, head=first.answer.id)
    assert (info.head, info.num_messages, info.used) == (first.answer.id, 4, wall.now_s)
    assert [node.id for node in await sessions.line(KEY)] == [*first.input_ids, first.answer.id]
    engine.will_say("x")
    await say(sessions, ask("e"))
    assert (await prompts(engine, service))[-1].endswith(chatml("e"))
    assert len(await sessions.nodes(KEY)) == 6
    assert (await sessions.update(KEY, head=second.answer.id)).head == second.answer.id
    assert (await sessions.update(KEY, head=None)).head is None
    assert await sessions.line(KEY) == []
    _, anew = await say(sessions, ask("r", max_tokens=1))
    assert anew.history_tokens == 0


async def test_a_fork_goes_on_from_the_very_tokens(engine: FakeEngine, sessions: Sessions) -> None:
    engine.will_say([*b"a", 256]).will_say("b").will_say("c").will_say("d")
    _, first = await say(sessions, ask("q"))
    await say(sessions, ask("w"))
    await sessions.update(KEY, title="old")
    before = await sessions.nodes(KEY)
    info = await sessions.fork(KEY, OTHER, at=first.answer.id)
    assert (info.title, info.num_messages, info.id) == ("old", 2, OTHER.id)
    assert info.num_tokens == before[1].line_tokens
    nodes = await sessions.nodes(OTHER)
    assert [node.message for node in nodes] == [node.message for node in before[:2]]
    assert not {node.id for node in nodes} & {node.id for node in before}
    await say(sessions, ask("e"), OTHER)
    one, _, three = asked(engine)
    assert three[: len(one) + 2] == [*one, *b"a", 256]
    assert await sessions.nodes(KEY) == before
    whole = await sessions.fork(KEY, SessionKey("", "9"), title="new")
    assert (whole.title, whole.num_messages) == ("new", 4)
    await sessions.delete(KEY)
    assert await contents(sessions, OTHER) == ["q", "a", "e", "c"]


# --- sessions -----------------------------------------------------------------------------


async def test_a_session_is_made_looked_at_renamed_and_deleted(
    sessions: Sessions, wall: Wall
) -> None:
    info = await sessions.create(KEY, title="one", messages=[user("q"), assistant("a")])
    assert (info.id, info.title, info.num_messages, info.created) == ("7", "one", 2, wall.now_s)
    assert info.num_tokens > 0
    assert info == await sessions.info(KEY)
    assert info.head == (await sessions.line(KEY))[-1].id
    wall.now_s += 1
    renamed = await sessions.update(KEY, title="two")
    assert (renamed.title, renamed.used) == ("two", info.used)
    assert (await sessions.update(KEY, title=None)).title is None
    for new in (sessions.create(KEY), sessions.import_(KEY, await sessions.export(KEY))):
        with pytest.raises(SessionExists):
            await new
    with pytest.raises(SessionExists):
        await sessions.fork(KEY, KEY)
    await sessions.delete(KEY)
    with pytest.raises(SessionNotFound):
        await sessions.delete(KEY)
    assert (await sessions.create(KEY)).head is None
    assert await sessions.nodes(KEY) == []


async def test_other_owners_and_other_sessions_messages_are_as_none(sessions: Sessions) -> None:
    _, turn = await say(sessions, ask("q", max_tokens=1))
    await sessions.create(OTHER)
    await sessions.create(STRANGER)
    before = await sessions.export(KEY)
    for key in (OTHER, STRANGER):
        for id in (turn.answer.id, 0, -1, 12345, 2**63, -(2**63), -(2**70)):
            for call in (
                sessions.turn(key, ask("w"), keep=True, after=id),
                sessions.add(key, [user("w")], after=id),
                sessions.line(key, id),
                sessions.update(key, title="new", head=id),
                sessions.fork(key, SessionKey("", "new"), at=id),
            ):
                with pytest.raises(MessageNotFound) as caught:
                    await call
                assert caught.value.status == 404
        assert (await sessions.info(key)).title is None  # nothing of a refused call is done
    with pytest.raises(SessionNotFound):
        await sessions.info(SessionKey("", "new"))
    assert await sessions.export(KEY) == before


@pytest.mark.parametrize("forgotten", [False, True])
async def test_what_is_not_there_is_not_found(
    sessions: Sessions, wall: Wall, forgotten: bool
) -> None:
    if forgotten:
        await sessions.create(KEY, title="t", messages=[user("q")])
        wall.now_s += 101
    why = "was forgotten: it was not used for 100 s" if forgotten else "there is no session 7"
    for _ in range(2):  # told each time
        for call in (
            sessions.info(KEY),
            sessions.line(KEY),
            sessions.nodes(KEY),
            sessions.export(KEY),
            sessions.update(KEY, title="x"),
            sessions.update(KEY, head=None),
            sessions.add(KEY, [user("w")]),
            sessions.fork(KEY, OTHER),
            sessions.delete(KEY),
            sessions.turn(KEY, ask("w"), keep=True, must_exist=True),
        ):
            with pytest.raises(SessionNotFound, match=why):
                await call
    assert await sessions.list("", limit=9) == ([], False)
    info = await sessions.create(KEY)
    assert (info.title, info.num_messages, info.created) == (None, 0, wall.now_s)


async def test_a_forgotten_session_that_begins_anew_has_nothing_of_the_old(
    sessions: Sessions, wall: Wall
) -> None:
    await sessions.create(KEY, title="t", messages=[user("q")])
    (old,) = await sessions.nodes(KEY)
    wall.now_s += 101
    await say(sessions, ask("w", max_tokens=1), keep=False)  # the reason is not asked for
    await say(sessions, ask("w", max_tokens=1))
    info = await sessions.info(KEY)
    assert (info.title, info.num_messages, info.created) == (None, 2, wall.now_s)
    with pytest.raises(MessageNotFound):  # an id never names another message
        await sessions.line(KEY, old.id)


@pytest.mark.parametrize("limit", [1, 2, 3, 5, 9])
async def test_pages_of_sessions(sessions: Sessions, wall: Wall, limit: int) -> None:
    keys = [SessionKey("", str(num)) for num in range(5)]
    for num, key in enumerate(keys):
        wall.now_s += num != 3  # two of one time
        await sessions.create(key)
    await sessions.create(STRANGER)
    wall.now_s += 1
    await say(sessions, ask("q", max_tokens=1), keys[1])
    found: list[str] = []
    after: str | None = None
    has_more = True
    while has_more:
        page, has_more = await sessions.list("", limit=limit, after=after)
        found += [info.id for info in page]
        after = found[-1]
    assert found == ["1", "4", "3", "2", "0"]
    assert [info.id for info in (await sessions.list("somebody", limit=9))[0]] == ["7"]
    with pytest.raises(SessionNotFound):
        await sessions.list("somebody", limit=9, after="1")


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("title", {"title": "x" * 201}),
        ("title", {"title": "\ud800"}),
        ("messages[1].content", {"messages": [user("q"), {"role": "user"}]}),
        ("messages", {"messages": [user("\ud800")]}),
        ("messages", {"messages": [user("q")] * 20_001}),
    ],
)
async def test_a_wrong_field_makes_no_session(
    sessions: Sessions, field: str, fields: dict[str, Any]
) -> None:
    with pytest.raises(InvalidField) as caught:
        await sessions.create(KEY, **fields)
    assert caught.value.param == field
    with pytest.raises(SessionNotFound):
        await sessions.info(KEY)
    await sessions.create(KEY, title="x" * 200)


# --- as JSON ------------------------------------------------------------------------------


async def test_what_is_exported_is_imported(
    engine: FakeEngine, service: Service, sessions: Sessions
) -> None:
    engine.will_say("a").will_say("b").will_say("c").will_say("x")
    _, first = await say(sessions, ask("q"))
    await follow(sessions, first.input_ids[0], AGAIN)
    await follow(sessions, None, ask("Q"))
    await sessions.update(KEY, title="t", head=first.answer.id)
    exported = json.loads(json.dumps(await sessions.export(KEY)))
    assert (exported["format"], exported["version"]) == ("lmserve.session", 1)
    info = await sessions.import_(OTHER, exported)
    assert (info.title, info.num_messages) == ("t", 5)
    old, new = await sessions.nodes(KEY), await sessions.nodes(OTHER)
    ids = {node.id: twin.id for node, twin in zip(old, new, strict=True)}
    for node, twin in zip(old, new, strict=True):
        assert (twin.message, twin.created) == (node.message, node.created)
        assert twin.parent == (None if node.parent is None else ids[node.parent])
    assert info.head == ids[exported["head"]]
    await say(sessions, ask("w"), OTHER)
    assert (await prompts(engine, service))[-1] == chatml("q", "a", "w")


GOOD: dict[str, Any] = {
    "format": "lmserve.session",
    "version": 1,
    "title": None,
    "head": "b",
    "messages": [
        {"id": 1, "parent": None, "created": 5, "role": "user", "content": "q"},
        {"id": "b", "parent": 1, "role": "assistant", "content": "a", "extra": [1]},
    ],
}


async def test_the_times_and_unknown_fields_are_kept(sessions: Sessions, wall: Wall) -> None:
    await sessions.import_(KEY, GOOD)
    nodes = await sessions.nodes(KEY)
    assert [node.created for node in nodes] == [5.0, wall.now_s]
    assert nodes[1].message == {"role": "assistant", "content": "a", "extra": [1]}
    empty = {"format": "lmserve.session", "version": 1, "messages": []}
    assert (await sessions.import_(OTHER, empty)).head is None


@pytest.mark.parametrize(
    ("where", "value"),
    [
        ("format", "other"),
        ("version", 2),
        ("version", True),
        ("title", 5),
        ("title", "x" * 201),
        ("head", 2),
        ("head", []),
        ("messages", None),
        ("messages", {}),
        ("messages", "x"),
        ("messages[1]", "x"),
        ("messages[1].id", 1),
        ("messages[1].id", None),
        ("messages[1].id", True),
        ("messages[0].id", [1]),
        ("messages[0].parent", 1),
        ("messages[0].parent", "b"),
        ("messages[1].parent", 7),
        ("messages[1].parent", {}),
        ("messages[1].role", 3),
        ("messages[0].content", None),
        ("messages[0].content", [{"type": "image"}]),
        ("messages[0].created", -1),
        ("messages[0].created", float("nan")),
        ("messages[0].created", 1e300),
        ("messages[0].created", True),
    ],
)
async def test_a_wrong_import_changes_nothing(sessions: Sessions, where: str, value: Any) -> None:
    wrong = copy.deepcopy(GOOD)
    if where.startswith("messages["):
        index, _, name = where.removeprefix("messages[").partition("]")
        if name:
            wrong["messages"][int(index)][name[1:]] = value
        else:
            wrong["messages"][int(index)] = value
    else:
        wrong[where] = value
    with pytest.raises(InvalidField) as caught:
        await sessions.import_(KEY, wrong)
    assert str(caught.value.param).startswith(where)
    assert where in caught.value.message
    with pytest.raises(SessionNotFound):
        await sessions.info(KEY)
    assert not sessions.turns.busy


async def test_an_import_larger_than_the_store_is_refused(
    service: Service, options: SessionSettings, tmp_path: Path
) -> None:
    small = SessionSettings(data_dir=str(tmp_path / "small"), max_session_tokens=100)
    sessions = Sessions(service, small)
    await sessions.open()
    try:
        await sessions.create(OTHER, messages=[user("x")])
        with pytest.raises(InvalidField, match="keeps 100 in all"):
            await sessions.create(KEY, messages=[user("x" * 400)])
        await sessions.info(OTHER)
        await sessions.create(KEY, messages=[user("x" * 340)])
        with pytest.raises(SessionNotFound, match="made room"):
            await sessions.info(OTHER)
    finally:
        await sessions.close()


# --- who waits ----------------------------------------------------------------------------


async def test_writers_are_served_in_order_and_readers_at_once(
    engine: FakeEngine, sessions: Sessions
) -> None:
    await say(sessions, ask("q", max_tokens=1))
    before = await sessions.info(KEY)
    engine.will_hang("Hel")
    turn = await sessions.turn(KEY, ask("w"), keep=True)
    with turn.generation.lease():
        adding = asyncio.create_task(sessions.add(KEY, [user("e")]))
        moving = asyncio.create_task(sessions.update(KEY, head=before.head))
        last = asyncio.create_task(sessions.add(KEY, [user("r")]))
        renamed = await sessions.update(KEY, title="t")
        assert (renamed.head, renamed.num_messages) == (before.head, 2)
        assert len(await sessions.line(KEY)) == len(await sessions.nodes(KEY)) == 2
        assert (await sessions.fork(KEY, OTHER)).num_messages == 2
        assert len((await sessions.export(KEY))["messages"]) == 2
        assert not any(task.done() for task in (adding, moving, last))
        sessions.cancel(KEY)
        await collect(turn.generation)
    await turn.settled()
    (added,), moved, (newest,) = await adding, await moving, await last
    assert added.parent == turn.answer.id
    assert moved.head == newest.parent == before.head


async def test_a_deleted_session_refuses_those_who_wait(
    engine: FakeEngine, sessions: Sessions
) -> None:
    engine.will_hang("Hel")
    turn = await sessions.turn(KEY, ask("w"), keep=True)
    with turn.generation.lease():
        moving = asyncio.create_task(sessions.update(KEY, head=None))
        await asyncio.sleep(0)
        await sessions.delete(KEY)  # it has begun, though nothing is stored yet
        with pytest.raises(SessionBusy):
            await moving
        with pytest.raises(SessionNotFound):
            await sessions.delete(KEY)
        await collect(turn.generation)
    await turn.settled()
    assert turn.answer is None


async def test_a_write_goes_on_where_its_caller_leaves(sessions: Sessions) -> None:
    creating = asyncio.create_task(sessions.create(KEY, messages=[user("q")]))
    await asyncio.sleep(0)
    creating.cancel()
    added = await sessions.add(KEY, [user("w")])
    assert added[0].parent is not None


async def test_a_full_disk_changes_nothing(sessions: Sessions) -> None:
    await sessions.create(KEY, messages=[user("q")])
    before = await sessions.export(KEY)
    await sessions.keeper.run(lambda store: store._connection.execute("PRAGMA query_only = ON"))
    for call in (
        sessions.create(OTHER),
        sessions.add(KEY, [user("w")]),
        sessions.update(KEY, title="x", head=None),
        sessions.fork(KEY, OTHER),
        sessions.delete(KEY),
    ):
        with pytest.raises(StoreError):
            await call
    assert not sessions.turns.busy
    await sessions.keeper.run(lambda store: store._connection.execute("PRAGMA query_only = OFF"))
    assert await sessions.export(KEY) == before


def test_ids_that_are_no_plain_number_name_no_other_answer() -> None:
    ids = ("5", "-2", "sess_1", "1_0", " 7", "007", "\u0661", "")
    numbers = [SessionKey("", id).number for id in ids]
    assert numbers == [5, -2, None, None, None, None, None, None]
