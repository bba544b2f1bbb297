"""Answers over the fake engine: what is told, what is kept, what follows what."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses

import pytest

from lmserve.bridge.fake import FakeEngine
from lmserve.errors import (
    AnswerConflict,
    AnswerNotFound,
    DeadlineExceeded,
    EngineError,
    EventsGone,
    InvalidField,
    KeyReused,
    MessageNotFound,
    PromptTooLong,
    SessionFull,
    SessionNotFound,
)
from lmserve.messages import unpack_ids
from lmserve.service.sessions.sessions import SessionKey
from tests.service.plain import Place, ask, finish, names, said, say, stored, told
from tests.service.talk import chatml, prompts, user


async def test_an_answer_is_told_and_kept(place: Place, engine: FakeEngine) -> None:
    engine.will_say("Hel", "lo")
    answer = await place.answers.begin(ask("hi", told={"temperature": 1}))
    record = await finish(answer)
    assert [name for name in names(answer.stream) if name != "delta"] == [
        "created", "in_progress", "text", "completed",
    ]  # fmt: skip
    assert said(answer.stream) == record.text == "Hello"
    assert (record.status, record.model, record.told) == ("completed", "mock", {"temperature": 1})
    assert record.usage is not None
    assert record.usage.completion_tokens == 6
    assert await stored(place, record) == (record, told(answer.stream))
    line = await place.sessions.line(SessionKey("", record.session))
    assert [node.id for node in line] == [*record.input_ids, record.message_id]
    assert [node.message["content"] for node in line] == ["hi", "Hello"]


async def test_what_follows_an_answer_goes_on_from_its_very_tokens(
    place: Place, engine: FakeEngine
) -> None:
    engine.will_say("A").will_say("B").will_say("C")
    first = await say(place, ask("one"))
    second = await say(place, ask("two", previous=first.id))
    third = await say(place, ask("three", previous=first.id))  # a fork
    assert (await prompts(engine, place.service))[1:] == [
        chatml("one", "A", "two"),
        chatml("one", "A", "three"),
    ]
    ids = [unpack_ids(submit.token_ids) for submit in engine.submits]
    for fork in ids[1:]:
        assert fork[: len(ids[0]) + 1] == [*ids[0], *b"A"]
    assert first.session == second.session == third.session
    assert second.previous == first.id
    nodes = await place.sessions.line(SessionKey("", first.session))
    assert nodes[-1].id == third.message_id
    assert nodes[-2].siblings == [*second.input_ids, *third.input_ids]


async def test_several_answers_may_be_made_in_one_session(place: Place, engine: FakeEngine) -> None:
    engine.will_say("A").will_hang("b").will_say("C")
    first = await say(place, ask("one"))
    hanging = await place.answers.begin(ask("two", previous=first.id))
    assert [one.record.id for one in place.answers.of_session("", first.session)] == [
        hanging.record.id
    ]
    assert (await say(place, ask("three", previous=first.id))).text == "C"
    with pytest.raises(AnswerConflict):
        await place.answers.begin(ask("x", previous=hanging.record.id))
    record = await place.answers.cancel("", hanging.record.id)
    assert (record.status, record.text) == ("cancelled", "b")
    assert names(hanging.stream)[-1] == "cancelled"
    assert not place.answers.of_session("", first.session)


async def test_a_turn_in_a_session_waits_for_the_one_before(
    place: Place, engine: FakeEngine
) -> None:
    key = SessionKey("", "talk")
    await place.sessions.create(key)
    engine.will_hang("a").will_say("B")
    first = await place.answers.begin(ask("one", session="talk"))
    second = asyncio.create_task(place.answers.begin(ask("two", session="talk")))
    while not place.sessions.turns._waiters.get(key):  # noqa: ASYNC110
        await asyncio.sleep(0)
    assert place.sessions.cancel(key)
    assert (await first.ended()).status == "cancelled"
    assert (await finish(await second)).text == "B"
    line = await place.sessions.line(key)
    assert [node.message["content"] for node in line] == ["one", "a", "two", "B"]
    assert [node.state for node in line] == [None, "incomplete", None, None]


async def test_a_turn_waits_for_the_answer_that_began_its_session(
    place: Place, engine: FakeEngine
) -> None:
    engine.will_hang("a").will_say("B")
    first = await place.answers.begin(ask("one"))
    key = SessionKey("", first.record.session)
    second = asyncio.create_task(place.answers.begin(ask("two", session=key.id)))
    while not place.sessions.turns._waiters.get(key):  # noqa: ASYNC110
        await asyncio.sleep(0)
    await place.answers.cancel("", first.record.id)
    assert (await finish(await second)).text == "B"
    line = await place.sessions.line(key)
    assert [node.message["content"] for node in line] == ["one", "a", "two", "B"]


async def test_a_place_in_the_tree_can_be_named(place: Place, engine: FakeEngine) -> None:
    await place.sessions.create(SessionKey("", "talk"))
    engine.will_say("A").will_say("B").will_say("C")
    first = await say(place, ask("one", session="talk"))
    again = await say(place, ask(session="talk", after=first.input_ids[0]))
    edited = await say(place, ask("uno", session="talk", after=None))
    assert (await prompts(engine, place.service)) == [chatml("one"), chatml("one"), chatml("uno")]
    nodes = await place.sessions.nodes(SessionKey("", "talk"))
    assert [(node.id, node.parent) for node in nodes] == [
        (first.input_ids[0], None),
        (first.message_id, first.input_ids[0]),
        (again.message_id, first.input_ids[0]),
        (edited.input_ids[0], None),
        (edited.message_id, edited.input_ids[0]),
    ]


async def test_what_names_no_place_is_refused(place: Place) -> None:
    await place.sessions.create(SessionKey("", "talk"))
    for refused, error in (
        (ask("x", previous="resp_no"), AnswerNotFound),
        (ask("x", previous="\ud800"), AnswerNotFound),
        (ask("x", session="none"), SessionNotFound),
        (ask("x", session="talk", owner="somebody"), SessionNotFound),
        (ask("x", session="talk", after=99), MessageNotFound),
        (ask("x", session="talk", continues=99), MessageNotFound),
        (ask(), InvalidField),
        (ask(session="talk"), InvalidField),
    ):
        with pytest.raises(error):
            await place.answers.begin(refused)
    assert not place.sessions.turns.busy
    assert place.engine.submits == []


async def test_another_owners_answer_is_none(place: Place, engine: FakeEngine) -> None:
    engine.will_hang("a")
    answer = await place.answers.begin(ask("hi", owner="me"))
    id = answer.record.id
    answers = place.answers
    assert answers.running("you", id) is None
    assert answers.running("me", id) is answer
    for call in (
        answers.record("you", id), answers.stream("you", id), answers.input("you", id),
        answers.cancel("you", id), answers.delete("you", id),
        answers.steer("you", id, [user("x")], "x"), answers.begin(ask("x", previous=id)),
        answers.update("you", id, {"max_tokens": 3}, {}),
    ):  # fmt: skip
        with pytest.raises(AnswerNotFound):
            await call
    assert answer.record.ended is None


# --- how it ends --------------------------------------------------------------------------


async def test_an_answer_that_fails_keeps_what_was_said(place: Place, engine: FakeEngine) -> None:
    engine.will_fail("out of luck", "som", "e")
    answer = await place.answers.begin(ask("hi"))
    with answer.stream.reading(), pytest.raises(EngineError, match="out of luck"):
        await answer.ended()
    record = answer.record
    assert (record.status, record.error) == ("failed", ("engine_error", "out of luck"))
    assert names(answer.stream)[-1] == "failed"
    assert await stored(place, record) == (record, told(answer.stream))
    (node,) = [n for n in await nodes(place, record.session) if n.id == record.message_id]
    assert (node.message["content"], node.state) == ("some", "failed")
    info = await place.sessions.info(SessionKey("", record.session))
    assert info.head is None


async def test_an_answer_may_be_cut_by_its_length(place: Place, engine: FakeEngine) -> None:
    engine.will_say("12345678")
    record = await say(place, ask("hi", fields={"max_tokens": 3}))
    assert (record.status, record.reason, record.text) == ("incomplete", "max_output_tokens", "123")


async def test_without_readers_it_is_abandoned(place: Place, engine: FakeEngine) -> None:
    engine.will_hang("a").will_hang("b")
    answer = await place.answers.begin(ask("hi"))
    background = await place.answers.begin(ask("hi", background=True))
    assert background.record.status in ("queued", "in_progress")
    answer.stream._on_abandoned()
    record = await answer.ended()
    assert (record.status, record.reason, record.text) == ("incomplete", "abandoned", "a")
    assert answer.stream._grace_s is not None
    assert background.stream._grace_s is None


async def test_a_stop_of_the_server_ends_what_runs(place: Place, engine: FakeEngine) -> None:
    engine.will_hang("a")
    answer = await place.answers.begin(ask("hi"))
    with answer.stream.reading():
        await place.service.drain(0.0)
        record = await answer.ended()
    assert (record.status, record.reason, record.text) == ("incomplete", "server_shutdown", "a")


async def test_an_answer_ends_with_its_time(place: Place, engine: FakeEngine) -> None:
    engine.will_hang("a").will_hang()
    late = await say(place, ask("hi", fields={"deadline_s": 1.0}))
    assert (late.status, late.reason, late.text) == ("incomplete", "deadline", "a")
    answer = await place.answers.begin(ask("hi", fields={"deadline_s": 0.5}))
    with answer.stream.reading(), contextlib.suppress(DeadlineExceeded):
        await answer.ended()
    assert (answer.record.status, answer.record.reason) == ("incomplete", "deadline")


async def test_what_waits_is_told_its_place(place: Place, engine: FakeEngine) -> None:
    engine.will_queue(1)
    engine.hang()
    first = await place.answers.begin(ask("one"))
    second = await place.answers.begin(ask("two"))
    assert names(second.stream) == ["created", "in_progress"]  # it may be its turn in a moment
    with second.stream.reading(1) as reader:
        await reader.wait()
    assert told(second.stream)[2][0] == "Queued"
    assert "position=1" in told(second.stream)[2][1]
    engine.resume()
    await finish(first)
    await finish(second)


async def test_a_stop_string_leaves_what_was_shown(place: Place, engine: FakeEngine) -> None:
    engine.will_say("one END two").will_say("x")
    record = await say(place, ask("hi", fields={"stop": ("END",)}))
    assert (record.text, record.status) == ("one ", "completed")
    await say(place, ask("more", previous=record.id))
    assert (await prompts(engine, place.service))[1] == chatml("hi", "one ", "more")


async def test_a_session_that_goes_takes_its_answers_along(
    place: Place, engine: FakeEngine
) -> None:
    engine.will_say("A").will_hang("b").will_hang("c")
    first = await say(place, ask("one"))
    running = [
        await place.answers.begin(ask("two", previous=first.id)),
        await place.answers.begin(ask("two", session=first.session)),
    ]
    gone = (first.id, *(answer.record.id for answer in running))
    deleting = asyncio.create_task(place.sessions.delete(SessionKey("", first.session)))
    await asyncio.sleep(0)
    assert [place.answers.running("", id) for id in gone] == [None] * 3
    await deleting
    for id in gone:
        for call in (place.answers.record, place.answers.stream, place.answers.cancel):
            with pytest.raises(AnswerNotFound):
                await call("", id)
    for answer in running:
        assert (await answer.ended()).status == "cancelled"
        assert names(answer.stream)[-1] == "cancelled"


async def test_a_prompt_without_room_changes_nothing(place: Place, engine: FakeEngine) -> None:
    engine.will_say("A")
    with pytest.raises(PromptTooLong):
        await place.answers.begin(ask("x" * 9000))
    first = await say(place, ask("one"))
    with pytest.raises(SessionFull):
        await place.answers.begin(ask("x" * 9000, session=first.session))
    assert len(await nodes(place, first.session)) == 2
    assert not place.sessions.turns.busy


# --- forms --------------------------------------------------------------------------------


async def test_input_may_be_run_without_an_answer(place: Place, engine: FakeEngine) -> None:
    engine.will_say("thrown away").will_say("B")
    record = await say(place, ask("one", generate=False))
    assert engine.submits[0].sampling.max_tokens == 1
    assert (record.status, record.text, record.message_id) == (
        "completed", "", record.input_ids[-1],
    )  # fmt: skip
    second = await say(place, ask("two", previous=record.id))
    shown = [node.message["content"] for node in await place.answers.input("", second.id)]
    assert shown == ["one", "two"]
    assert [n.id for n in await place.answers.input("", record.id)] == record.input_ids


async def test_instructions_hold_for_one_answer(place: Place, engine: FakeEngine) -> None:
    engine.will_say("A").will_say("B").will_say("C").will_say("D")
    first = await say(place, ask("one", instructions="Be short."))
    second = await say(place, ask("two", previous=first.id, instructions="Be short."))
    third = await say(place, ask("three", previous=second.id))
    fourth = await say(place, ask("four", previous=third.id))
    system = "<|im_start|>system\nBe short.<|im_end|>\n"
    assert await prompts(engine, place.service) == [
        system + chatml("one"),
        system + chatml("one", "A", "two"),
        chatml("one", "A", "two", "B", "three"),
        chatml("one", "A", "two", "B", "three", "C", "four"),
    ]
    ids = [unpack_ids(submit.token_ids) for submit in engine.submits]
    assert ids[1][: len(ids[0]) + 1] == [*ids[0], *b"A"]
    assert ids[3][: len(ids[2]) + 1] == [*ids[2], *b"C"]
    assert len(await nodes(place, fourth.session)) == 8


async def test_instructions_take_the_place_of_a_leading_system_message(
    place: Place, engine: FakeEngine
) -> None:
    await place.sessions.create(
        SessionKey("", "talk"), messages=[{"role": "system", "content": "Be long."}]
    )
    await say(place, ask("one", session="talk", instructions="Be short."))
    assert await prompts(engine, place.service) == [
        "<|im_start|>system\nBe short.<|im_end|>\n" + chatml("one")
    ]


async def test_an_incomplete_answer_is_gone_on_with(place: Place, engine: FakeEngine) -> None:
    engine.will_say([*b"ab", 195], finish="length").will_say([169, *b"cd"]).will_say("E")
    cut = await say(place, ask("one"))
    answer = await place.answers.begin(ask(session=cut.session, continues=cut.message_id))
    record = await finish(answer)
    assert (record.text, record.status) == ("ab\u00e9cd", "completed")
    assert said(answer.stream) == record.text
    assert told(answer.stream)[2] == ("delta", "ab")
    one, two = (unpack_ids(submit.token_ids) for submit in engine.submits)
    assert two == [*one, *b"ab", 195]
    line = await place.sessions.line(SessionKey("", cut.session))
    assert line[-1].siblings == [cut.message_id, record.message_id]
    await say(place, ask("more", previous=record.id))
    assert unpack_ids(engine.submits[2].token_ids)[: len(two) + 3] == [*two, 169, *b"cd"]
    with pytest.raises(AnswerConflict, match="whole"):
        await place.answers.begin(ask(session=cut.session, continues=record.message_id))
    with pytest.raises(InvalidField):
        await place.answers.begin(ask("x", session=cut.session, continues=cut.message_id))


async def test_what_instructions_led_is_gone_on_with_from_its_text_without_them(
    place: Place, engine: FakeEngine
) -> None:
    engine.will_say("ab", finish="length").will_say("cd", finish="length").will_say("ef")
    cut = await say(place, ask("one", instructions="Be short."))
    more = await say(place, ask(session=cut.session, continues=cut.message_id))
    last = await say(place, ask(session=cut.session, continues=more.message_id))
    assert (more.text, last.text) == ("abcd", "abcdef")
    assert (await prompts(engine, place.service))[1:] == [
        chatml("one") + "ab",
        chatml("one") + "abcd",
    ]


# --- kept in memory -----------------------------------------------------------------------


async def test_what_is_not_kept_stays_in_memory(place: Place, engine: FakeEngine) -> None:
    engine.will_say("A").will_say("B").will_say("C").will_say("D")
    first = await say(place, ask("one", keep=False))
    second = await say(place, ask("two", previous=first.id, keep=False))
    with pytest.raises(SessionNotFound):
        await place.sessions.info(SessionKey("", first.session))
    assert second.session == first.session
    kept = await say(place, ask("three", previous=second.id))
    assert [n.message["content"] for n in await nodes(place, kept.session)] == [
        "one", "A", "two", "B", "three", "C",
    ]  # fmt: skip
    last = await say(place, ask("four", previous=kept.id, keep=False))
    assert last.session not in (kept.session, first.session)
    ids = [unpack_ids(submit.token_ids) for submit in engine.submits]
    for before, after, answer in zip(ids, ids[1:], b"ABC", strict=False):
        assert after[: len(before) + 1] == [*before, answer]
    again = await say(place, ask(session=first.session, after=second.input_ids[0], keep=False))
    assert again.session == first.session


# --- once ---------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [True, False])
async def test_the_same_key_joins_the_same_answer(
    place: Place, engine: FakeEngine, keep: bool
) -> None:
    engine.will_hang("a").will_say("B")
    asked = ask("hi", keep=keep, idempotency=("key", b"1"))
    first, second = await asyncio.gather(place.answers.begin(asked), place.answers.begin(asked))
    assert first is second
    other = dataclasses.replace(asked, owner="somebody")
    assert (await say(place, other)).text == "B"
    with pytest.raises(KeyReused):
        await place.answers.begin(dataclasses.replace(asked, idempotency=("key", b"2")))
    record = await place.answers.cancel("", first.record.id)
    assert (await place.answers.begin(asked)).stream is first.stream
    assert await first.successor() is None
    place.streams.end(first.stream)
    place.streams.forget(first.stream)
    ended = await place.answers.begin(asked)
    assert ended.record == record
    assert told(ended.stream) == told(first.stream)
    assert len(engine.submits) == 2


async def test_what_failed_is_made_anew(place: Place, engine: FakeEngine) -> None:
    engine.will_fail("out of luck", "a").will_say("B")
    asked = ask("hi", idempotency=("key", b"1"))
    failed = await place.answers.begin(asked)
    with failed.stream.reading(), pytest.raises(EngineError):
        await failed.ended()
    made = await say(place, asked)
    assert (made.status, made.text) == ("completed", "B")
    assert (await place.answers.begin(asked)).record == made
    assert (await place.answers.record("", failed.record.id)).status == "failed"


async def test_a_beginning_that_fails_leaves_its_key(place: Place, engine: FakeEngine) -> None:
    asked = ask("x" * 9000, idempotency=("key", b"1"))
    with pytest.raises(PromptTooLong):
        await place.answers.begin(asked)
    assert (await say(place, ask("hi", idempotency=("key", b"2")))).status == "incomplete"


# --- deleted ------------------------------------------------------------------------------


async def test_a_deleted_answer_takes_what_nothing_follows(
    place: Place, engine: FakeEngine
) -> None:
    engine.will_say("A").will_say("B").will_hang("c")
    first = await say(place, ask("one"))
    second = await say(place, ask("two", previous=first.id))
    await place.answers.delete("", first.id)
    assert len(await nodes(place, first.session)) == 4
    with pytest.raises(AnswerNotFound):
        await place.answers.record("", first.id)
    running = await place.answers.begin(ask("three", previous=second.id))
    await place.answers.delete("", running.record.id)
    await place.answers.delete("", second.id)
    assert [n.message["content"] for n in await nodes(place, first.session)] == ["one", "A"]
    info = await place.sessions.info(SessionKey("", first.session))
    assert (info.head, info.num_messages) == (first.message_id, 2)


async def test_events_go_before_the_answer(place: Place, engine: FakeEngine) -> None:
    engine.will_say("A")
    record = await say(place, ask("one", idempotency=("key", b"1")))
    stream = await place.answers.stream("", record.id)
    place.streams.forget(stream)
    place.now_s += 2 * 86400.0
    await place.sessions.keeper.sweep()
    assert (await place.answers.record("", record.id)).text == "A"
    with pytest.raises(EventsGone):
        await place.answers.stream("", record.id)
    joined = await place.answers.begin(ask("one", idempotency=("key", b"1")))
    assert told(joined.stream) == told(stream)


async def nodes(place: Place, session: str):
    return await place.sessions.nodes(SessionKey("", session))
