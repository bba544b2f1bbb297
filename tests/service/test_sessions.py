"""Sessions over the fake engine: what is run, what is kept, who waits."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator

import msgspec
import pytest

from lmserve.bridge.fake import FakeEngine
from lmserve.errors import (
    EngineError,
    EngineUnavailable,
    InvalidField,
    Overloaded,
    RequestError,
    SessionBusy,
    SessionFull,
    SessionLost,
    StoreError,
)
from lmserve.messages import unpack_ids
from lmserve.service.generate import Service, collect
from lmserve.service.metrics import Metrics
from lmserve.service.sessions.sessions import SessionKey, Sessions
from lmserve.service.store.store import Line
from lmserve.settings import EngineSettings, SessionSettings, Settings
from lmserve.types import Done, GenerateRequest, TextDelta
from tests.service.conftest import Wall
from tests.service.talk import (
    KEY,
    OTHER,
    ask,
    assistant,
    chatml,
    contents,
    held,
    prompts,
    say,
    user,
    waiting,
)

# --- what is run --------------------------------------------------------------------------


async def test_a_later_turn_goes_on_from_the_very_tokens(
    engine: FakeEngine, service: Service, sessions: Sessions
) -> None:
    engine.will_say("Hel", "lo").will_say("Bye")
    _, first = await say(sessions, ask("hi"))
    _, second = await say(sessions, ask("more"))
    one, two = (unpack_ids(submit.token_ids) for submit in engine.submits)
    assert two[: len(one) + 5] == [*one, *b"Hello"]
    assert (await prompts(engine, service))[1] == chatml("hi", "Hello", "more")
    assert (first.history_tokens, first.input_tokens) == (0, len(one))
    assert (second.history_tokens, second.input_tokens) == (len(one) + 5, len(two) - len(one) - 5)
    line = await held(sessions)
    assert line.messages == [user("hi"), assistant("Hello"), user("more"), assistant("Bye")]
    assert line.history is not None
    assert line.history.token_ids == [*two, *b"Bye"]


async def test_tokens_are_kept_even_where_the_text_says_them_otherwise(
    engine: FakeEngine, service: Service, sessions: Sessions
) -> None:
    engine.will_say([*b"ab", 256, 300]).will_say("x")  # a hidden mark, a word that is one token
    text, _ = await say(sessions, ask("hi"))
    await say(sessions, ask("more"))
    one, two = (unpack_ids(submit.token_ids) for submit in engine.submits)
    assert two[len(one) : len(one) + 4] == [*b"ab", 256, 300]
    assert (await contents(sessions))[1] == text


async def test_a_stop_string_leaves_what_was_shown(
    engine: FakeEngine, service: Service, sessions: Sessions
) -> None:
    engine.will_say("one END two").will_say("x")
    text, _ = await say(sessions, ask("hi", stop=("END",)))
    assert text == "one "
    await say(sessions, ask("more"))
    assert (await prompts(engine, service))[1] == chatml("hi", "one ", "more")


async def test_an_answer_cut_by_its_length_is_closed(
    engine: FakeEngine, service: Service, sessions: Sessions
) -> None:
    engine.will_say("half", finish="length").will_say("x")
    await say(sessions, ask("hi"))
    await say(sessions, ask("more"))
    assert (await prompts(engine, service))[1] == chatml("hi", "half", "more")


async def test_a_history_sent_again_is_not_run_twice(
    engine: FakeEngine, service: Service, sessions: Sessions
) -> None:
    engine.will_say("Hello").will_say("x").will_say("y")
    await say(sessions, ask("hi"))
    again = GenerateRequest(messages=[user("hi"), assistant("Hello"), user("more")])
    _, turn = await say(sessions, again)
    assert turn.history_tokens > 0
    assert (await prompts(engine, service))[1] == chatml("hi", "Hello", "more")
    await say(sessions, GenerateRequest(messages=[user("hi"), assistant("Other"), user("new")]))
    whole = chatml("hi", "Hello", "more", "x", "hi", "Other", "new")
    assert (await prompts(engine, service))[2] == whole


async def test_several_new_messages_then_one(
    engine: FakeEngine, service: Service, sessions: Sessions
) -> None:
    engine.will_say("a").will_say("b").will_say("c")
    await say(
        sessions, GenerateRequest(messages=[user("q"), assistant("from elsewhere"), user("w")])
    )
    await say(sessions, ask("e"))
    await say(sessions, GenerateRequest(messages=[assistant("r"), user("t")]))
    await say(sessions, ask("y"))
    asked = await prompts(engine, service)
    flat = chatml("q", "from elsewhere", "w", "a", "e")
    assert asked[1] == flat
    ids = [unpack_ids(submit.token_ids) for submit in engine.submits]
    assert ids[1][: len(ids[0]) + 1] == [*ids[0], *b"a"]
    assert ids[3][: len(ids[2])] == ids[2]


async def test_appended_messages_are_run_with_the_next_turn(
    engine: FakeEngine, service: Service, sessions: Sessions
) -> None:
    replayed = [user("q"), assistant("a")]
    assert await sessions.append(KEY, replayed) == 0
    assert await sessions.append(KEY, replayed) == 0  # again: nothing new
    engine.will_say("b").will_say("c")
    _, turn = await say(sessions, ask("w"))
    assert (turn.history_tokens, turn.input_tokens) == (0, turn.generation.num_prompt_tokens)
    await say(sessions, ask("e"))
    assert await prompts(engine, service) == [
        chatml("q", "a", "w"),
        chatml("q", "a", "w", "b", "e"),
    ]
    num_tokens = (await held(sessions)).num_tokens
    assert await sessions.append(KEY, [user("not answered")]) == num_tokens


async def test_plain_text_goes_on(engine: FakeEngine, service: Service, sessions: Sessions) -> None:
    engine.will_say("cd").will_say("gh").will_say("x")
    await say(sessions, GenerateRequest(text="ab"))
    await say(sessions, GenerateRequest(text="ef"))
    await say(sessions, GenerateRequest(text=""))
    assert await prompts(engine, service) == ["ab", "abcdef", "abcdefgh"]
    with pytest.raises(InvalidField):
        await sessions.turn(OTHER, GenerateRequest(text=""), keep=True)


async def test_plain_text_after_appended_text(
    engine: FakeEngine, service: Service, sessions: Sessions
) -> None:
    engine.will_say("cd").will_say("x")
    await sessions.append(KEY, [user("ab")])
    await say(sessions, GenerateRequest(text="!"))
    await sessions.append(KEY, [user("ef")])
    await say(sessions, GenerateRequest(text="?"))
    assert await prompts(engine, service) == ["ab!", "ab!cdef?"]


async def test_tokens_of_another_template_are_rendered_anew(
    engine: FakeEngine, service: Service, sessions: Sessions
) -> None:
    engine.will_say("a").will_say("b").will_say("c")
    await say(sessions, ask("q"))
    assert engine.info is not None
    template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]"
    engine.info = msgspec.structs.replace(engine.info, chat_template=template)
    await say(sessions, ask("w"))
    await say(sessions, ask("e"))
    asked = await prompts(engine, service)
    assert asked[1] == "[user]q[assistant]a[user]w[assistant]"
    assert asked[2] == "[user]q[assistant]a[user]w[assistant]b[user]e[assistant]"


async def test_a_session_outlives_its_server(
    engine: FakeEngine, service: Service, sessions: Sessions, options: SessionSettings
) -> None:
    engine.will_say("Hello").will_say("x")
    await say(sessions, ask("hi"))
    await sessions.close()
    after = Sessions(service, options, clock=lambda: 1000.0)
    await after.open()
    try:
        await say(after, ask("more"))
    finally:
        await after.close()
    one, two = (unpack_ids(submit.token_ids) for submit in engine.submits)
    assert two[: len(one) + 5] == [*one, *b"Hello"]


# --- what is kept -------------------------------------------------------------------------


async def test_a_session_of_one_turn_leaves_nothing(engine: FakeEngine, sessions: Sessions) -> None:
    engine.will_say("a").will_say("b").will_say("c")
    await say(sessions, ask("q"), keep=False)
    assert await contents(sessions) == []
    await say(sessions, ask("q"))
    _, last = await say(sessions, ask("w"), keep=False)
    assert last.history_tokens > 0
    assert await contents(sessions) == []


async def test_a_client_that_leaves_keeps_what_was_said(
    engine: FakeEngine, service: Service, sessions: Sessions
) -> None:
    engine.will_hang("Hel", "lo").will_say("x")
    said = asyncio.Event()

    async def handler() -> None:
        turn = await sessions.turn(KEY, ask("hi"), keep=True)
        with turn.generation.lease():
            async for event in turn.generation.events():
                assert isinstance(event, TextDelta)
                if event.text.endswith("lo"):
                    said.set()

    task = asyncio.create_task(handler())
    await said.wait()
    following = asyncio.create_task(say(sessions, ask("more")))
    await waiting(sessions, 1)
    task.cancel()
    await following  # the next one goes on
    assert await contents(sessions) == ["hi", "Hello", "more", "x"]
    assert (await prompts(engine, service))[1] == chatml("hi", "Hello", "more")


async def test_a_client_that_leaves_at_once(engine: FakeEngine, sessions: Sessions) -> None:
    engine.will_hang()

    async def handler() -> None:
        await sessions.turn(KEY, ask("hi"), keep=True)  # and ends, without a lease

    await asyncio.create_task(handler())
    engine.will_say("x")
    await say(sessions, ask("more"))
    assert await contents(sessions) == ["hi", "", "more", "x"]


async def test_a_failure_changes_nothing(engine: FakeEngine, sessions: Sessions) -> None:
    engine.will_say("a").will_fail("out of luck", "some").will_say("b")
    await say(sessions, ask("q"))
    turn = await sessions.turn(KEY, ask("w"), keep=True)
    with pytest.raises(EngineError, match="out of luck"):
        await collect(turn.generation)
    await turn.settled()
    assert await contents(sessions) == ["q", "a"]
    await say(sessions, ask("e"))
    assert await contents(sessions) == ["q", "a", "e", "b"]


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        (GenerateRequest(messages=[]), InvalidField),
        (GenerateRequest(messages=[{"role": "user"}]), InvalidField),
        (ask("hi", temperature=9.0), InvalidField),
        (ask("hi \ud800"), RequestError),
    ],
)
async def test_a_mistake_changes_nothing(
    sessions: Sessions, wrong: GenerateRequest, error: type[Exception]
) -> None:
    await say(sessions, ask("q", max_tokens=1))
    before = await held(sessions)
    with pytest.raises(error):
        await sessions.turn(KEY, wrong, keep=True)
    assert await held(sessions) == before


async def test_what_is_no_message_is_not_appended(sessions: Sessions) -> None:
    for wrong in ([{"role": "user"}], [{"content": "x"}], [user("\ud800")]):
        with pytest.raises(InvalidField):
            await sessions.append(KEY, wrong)
    assert await contents(sessions) == []


async def test_no_engine_no_turn(engine: FakeEngine, sessions: Sessions) -> None:
    engine.die()
    with pytest.raises(EngineUnavailable):
        await sessions.turn(KEY, ask("hi"), keep=True)
    engine.resume()
    await say(sessions, ask("hi", max_tokens=1))


# --- no room ------------------------------------------------------------------------------


@pytest.fixture
def engine_settings() -> EngineSettings:
    return EngineSettings(engine="mock", session_len=120)


@pytest.fixture
async def small(engine_settings: EngineSettings) -> AsyncIterator[FakeEngine]:
    fake = FakeEngine(engine_settings)
    await fake.start()
    yield fake
    await fake.close()


@pytest.mark.parametrize("keep", [True, False])
async def test_a_full_session_says_so(
    small: FakeEngine, settings: Settings, options: SessionSettings, keep: bool
) -> None:
    service = Service(small, settings, Metrics(small, settings))
    sessions = Sessions(service, options)
    await sessions.open()
    try:
        small.will_say("a" * 60)
        await say(sessions, ask("hi"))
        before = await held(sessions)
        for prompt in ("b" * 60, "b" * 100_000):
            with pytest.raises(SessionFull) as caught:
                await sessions.turn(KEY, ask(prompt), keep=True)
            assert caught.value.history_tokens == before.num_tokens
            assert caught.value.num_tokens > 120
            assert await held(sessions) == before
        with pytest.raises(SessionFull):
            await sessions.append(KEY, [user("b" * 100_000)])
        with pytest.raises(SessionFull):
            await sessions.turn(KEY, ask("b" * 60), keep=keep)
        assert await held(sessions) == (before if keep else Line())
    finally:
        service.close()
        await sessions.close()


# --- forgotten ----------------------------------------------------------------------------


async def test_an_old_session_is_lost_and_told_once(sessions: Sessions, wall: Wall) -> None:
    await say(sessions, ask("q", max_tokens=1))
    wall.now_s += 101
    with pytest.raises(SessionLost, match="session 7 was forgotten: it was not used for 100 s"):
        await sessions.turn(KEY, ask("w"), keep=True)
    _, turn = await say(sessions, ask("w", max_tokens=1))
    assert turn.history_tokens == 0


@pytest.mark.parametrize("swept", [True, False])
async def test_append_is_told_too(sessions: Sessions, wall: Wall, swept: bool) -> None:
    await say(sessions, ask("q", max_tokens=1))
    wall.now_s += 101
    if swept:
        await sessions.keeper.sweep()
    with pytest.raises(SessionLost):
        await sessions.append(KEY, [user("w")])
    assert await sessions.append(KEY, [user("w")]) == 0


async def test_a_last_turn_and_an_end_are_not_told(sessions: Sessions, wall: Wall) -> None:
    for key in (KEY, OTHER):
        await say(sessions, ask("q", max_tokens=1), key)
    wall.now_s += 101
    await say(sessions, ask("w", max_tokens=1), KEY, keep=False)
    await sessions.end(OTHER)
    await say(sessions, ask("e", max_tokens=1), OTHER)


async def test_the_session_unused_longest_makes_room(
    service: Service, options: SessionSettings, wall: Wall
) -> None:
    sessions = Sessions(service, dataclasses.replace(options, max_sessions=2), clock=wall)
    await sessions.open()
    try:
        for id in ("1", "2", "3"):
            wall.now_s += 1
            await say(sessions, ask("q", max_tokens=1), SessionKey("", id))
        with pytest.raises(SessionLost, match="made room"):
            await sessions.turn(SessionKey("", "1"), ask("w"), keep=True)
        assert len(await contents(sessions, SessionKey("", "2"))) == 2
    finally:
        await sessions.close()


async def test_a_running_turn_keeps_its_session(
    engine: FakeEngine, sessions: Sessions, wall: Wall
) -> None:
    await say(sessions, ask("q", max_tokens=1))
    engine.will_hang("w")
    turn = await sessions.turn(KEY, ask("w"), keep=True)
    with turn.generation.lease():
        wall.now_s += 1000
        await sessions.keeper.sweep()
    await turn.settled()
    assert len(await contents(sessions)) == 4


# --- who waits ----------------------------------------------------------------------------


async def test_calls_are_served_in_order(engine: FakeEngine, sessions: Sessions) -> None:
    engine.will_hang()
    turn = await sessions.turn(KEY, ask("0"), keep=True)
    with turn.generation.lease():
        waiters = []
        for num in range(1, 9):
            waiters.append(asyncio.create_task(say(sessions, ask(str(num), max_tokens=1))))
            await waiting(sessions, num)
        with pytest.raises(Overloaded) as caught:
            await sessions.turn(KEY, ask("9"), keep=True)
        assert caught.value.retry_after_s > 0
        await say(sessions, ask("x", max_tokens=1), OTHER)  # others do not wait
    await asyncio.gather(*waiters)
    assert (await contents(sessions))[::2] == [str(num) for num in range(9)]


async def test_a_waiter_that_leaves_frees_its_place(engine: FakeEngine, sessions: Sessions) -> None:
    engine.will_hang()
    turn = await sessions.turn(KEY, ask("0"), keep=True)
    with turn.generation.lease():
        waiters = []
        for num in range(1, 9):
            waiters.append(asyncio.create_task(say(sessions, ask(str(num), max_tokens=1))))
            await waiting(sessions, num)
        for waiter in waiters[:7]:
            waiter.cancel()
        await asyncio.wait(waiters[:7])
        await waiting(sessions, 1)
    await waiters[7]
    assert (await contents(sessions))[::2] == ["0", "8"]


async def test_a_waiter_that_leaves_as_its_turn_comes_passes_it_on(
    engine: FakeEngine, sessions: Sessions
) -> None:
    turns = sessions.turns
    slot = await turns.enter(KEY)
    first = asyncio.create_task(turns.enter(KEY))
    second = asyncio.create_task(turns.enter(KEY))
    await waiting(sessions, 2)
    turns.leave(slot)  # it is the first one's turn, which does not know yet
    first.cancel()
    turns.leave(await second)
    assert first.cancelled()
    assert not turns.busy


async def test_busy_is_refused_where_the_settings_say_so(
    engine: FakeEngine, service: Service, options: SessionSettings
) -> None:
    sessions = Sessions(service, dataclasses.replace(options, session_busy="refuse"))
    await sessions.open()
    try:
        engine.will_hang()
        turn = await sessions.turn(KEY, ask("0"), keep=True)
        with turn.generation.lease():
            with pytest.raises(SessionBusy, match="is being answered"):
                await sessions.turn(KEY, ask("1"), keep=True)
            with pytest.raises(SessionBusy):
                await sessions.append(KEY, [user("1")])
        await turn.settled()
        await say(sessions, ask("2", max_tokens=1))
    finally:
        await sessions.close()


# --- cancel and end -----------------------------------------------------------------------


async def test_cancel_stops_the_answer_and_keeps_it(engine: FakeEngine, sessions: Sessions) -> None:
    assert not sessions.cancel(KEY)
    engine.will_hang("Hel", "lo")
    turn = await sessions.turn(KEY, ask("hi"), keep=True)
    with turn.generation.lease():
        text = ""
        async for event in turn.generation.events():
            if isinstance(event, Done):
                assert event.finish_reason == "abort"
            else:
                text += event.text
                if text == "Hello":
                    assert sessions.cancel(KEY)
    await turn.settled()
    assert not sessions.cancel(KEY)
    assert await contents(sessions) == ["hi", "Hello"]


async def test_cancel_while_a_turn_is_prepared_stops_it_as_it_starts(
    engine: FakeEngine, sessions: Sessions
) -> None:
    engine.will_hang("never")
    task = asyncio.create_task(say(sessions, ask("hi")))
    await asyncio.sleep(0)
    assert sessions.cancel(KEY)
    text, _ = await task
    assert text == ""
    assert await contents(sessions) == ["hi", ""]


async def test_cancel_reaches_other_routes_answers(
    engine: FakeEngine, service: Service, sessions: Sessions
) -> None:
    engine.will_hang()
    generation = await service.generate(ask("hi", session_id=7))
    with generation.lease():
        assert not sessions.cancel(SessionKey("somebody", "7"))
        assert sessions.cancel(KEY)
        assert service.abort_all("somebody") == 0
    assert generation.ended


async def test_answers_are_ended_by_their_owner_alone(engine: FakeEngine, service: Service) -> None:
    generations = []
    for owner, id in (("a", 1), ("a", 2), ("b", 1), ("b", None)):
        engine.will_hang()
        generations.append(await service.generate(ask("hi", owner=owner, session_id=id)))
    assert service.abort_session("a", 1) == 1
    assert [one.ended for one in generations] == [True, False, False, False]
    assert service.abort_all("b") == 2
    assert [one.ended for one in generations] == [True, False, True, True]
    assert service.abort_all("a") == 1


async def test_end_stops_the_answer_and_forgets_it(engine: FakeEngine, sessions: Sessions) -> None:
    await say(sessions, ask("q", max_tokens=1))
    engine.will_hang("Hel")
    turn = await sessions.turn(KEY, ask("hi"), keep=True)
    with turn.generation.lease():
        waiter = asyncio.create_task(sessions.turn(KEY, ask("more"), keep=True))
        await waiting(sessions, 1)
        await sessions.end(KEY)
        with pytest.raises(SessionBusy, match="was ended while this call waited"):
            await waiter
        events = [event async for event in turn.generation.events()]
        assert isinstance(events[-1], Done)
        assert events[-1].finish_reason == "abort"
    await turn.settled()
    assert await contents(sessions) == []
    await sessions.end(KEY)  # once more is no error
    _, anew = await say(sessions, ask("new", max_tokens=1))
    assert anew.history_tokens == 0


async def test_end_while_a_turn_is_prepared(engine: FakeEngine, sessions: Sessions) -> None:
    task = asyncio.create_task(say(sessions, ask("hi")))
    await asyncio.sleep(0)
    await sessions.end(KEY)
    with pytest.raises(SessionBusy, match="ended"):
        await task
    assert await contents(sessions) == []


async def test_a_session_may_begin_anew_before_the_old_answer_has_ended(
    engine: FakeEngine, sessions: Sessions
) -> None:
    engine.will_hang("old").will_say("new")
    old = await sessions.turn(KEY, ask("q"), keep=False)
    with old.generation.lease():
        await sessions.end(KEY)
        await say(sessions, ask("w"))
    await old.settled()
    assert await contents(sessions) == ["w", "new"]


# --- faults -------------------------------------------------------------------------------


async def test_a_full_disk_harms_one_turn(engine: FakeEngine, sessions: Sessions) -> None:
    await say(sessions, ask("q", max_tokens=1))
    before = await held(sessions)
    await sessions.keeper.run(
        lambda store: store._connection.execute("PRAGMA query_only = ON") and None
    )
    turn = await sessions.turn(KEY, ask("w", max_tokens=1), keep=True)
    text, done = await collect(turn.generation)
    assert (text != "", done.finish_reason) == (True, "length")
    with pytest.raises(StoreError):
        await turn.settled()
    with pytest.raises(StoreError):
        await sessions.end(KEY)
    await sessions.keeper.run(
        lambda store: store._connection.execute("PRAGMA query_only = OFF") and None
    )
    assert await held(sessions) == before
    await say(sessions, ask("e", max_tokens=1))
    assert len(await contents(sessions)) == 4


async def test_closing_waits_for_what_is_written(
    engine: FakeEngine, service: Service, options: SessionSettings
) -> None:
    sessions = Sessions(service, options)
    await sessions.open()
    engine.will_hang("some")
    turn = await sessions.turn(KEY, ask("hi"), keep=True)
    with turn.generation.lease():
        pass
    await sessions.close()
    await turn.settled()
    await sessions.close()
    with pytest.raises(StoreError, match="stopping"):
        await sessions.turn(KEY, ask("hi"), keep=True)
    after = Sessions(service, options)
    await after.open()
    assert await contents(after) == ["hi", ""]
    await after.close()


async def test_new_ids_are_for_javascript_too(sessions: Sessions) -> None:
    ids = {sessions.new_id() for _ in range(100)}
    assert len(ids) == 100
    assert min(ids) > 0
    assert max(ids) < 2**53
