from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmserve.bridge.assets import CHAT_TEMPLATE
from lmserve.bridge.fake import FakeEngine
from lmserve.errors import InvalidField, MessageNotFound, SessionNotFound
from lmserve.messages import LOWEST, EngineInfo, unpack_ids
from lmserve.service.generate import Service, collect
from lmserve.service.metrics import Metrics
from lmserve.service.prompt import ModelText
from lmserve.service.sessions.sessions import UNSET, SessionKey, Sessions
from lmserve.service.store.store import Line
from lmserve.service.warm import drafts as module
from lmserve.service.warm.drafts import Change, Draft, Drafts, settled_ids
from lmserve.service.warm.warmth import Warmth
from lmserve.settings import Settings, WarmSettings
from lmserve.types import GenerateRequest, History
from tests.service.conftest import Clock
from tests.service.talk import KEY, OTHER, ask, prompts, say, user

TRIMMING = CHAT_TEMPLATE.replace("message['content']", "message['content'] | trim")


@pytest.fixture(autouse=True)
def no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOK_S", 0.002)


@pytest.fixture
async def warmth(
    engine: FakeEngine, metrics: Metrics, sessions: Sessions, clock: Clock
) -> AsyncIterator[Warmth]:
    warmth = Warmth(engine, WarmSettings(), metrics, clock=clock)
    yield warmth
    await warmth.close()


@pytest.fixture
async def drafts(service: Service, sessions: Sessions, warmth: Warmth) -> AsyncIterator[Drafts]:
    drafts = Drafts(service, sessions, warmth, WarmSettings())
    yield drafts
    await drafts.close()
    assert not drafts._tasks


@pytest.fixture
async def begun(sessions: Sessions) -> None:
    """The session has a turn."""
    await say(sessions, ask("hi", max_tokens=3))


async def until(draft: Draft, state: str) -> None:
    await eventually(lambda: draft.state == state)


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def typed(drafts: Drafts, text: str, key: SessionKey = KEY) -> Draft:
    return await drafts.set(key, UNSET, Change(text))


# --- what is settled ----------------------------------------------------------------------


async def test_it_runs_what_the_turn_will_begin_with(
    engine: FakeEngine, service: Service, sessions: Sessions, drafts: Drafts, begun: None
) -> None:
    draft = await typed(drafts, "what is the tim")
    assert await draft.ready()
    await say(sessions, ask("what is the time?", max_tokens=3))
    _, ahead, turn = await prompts(engine, service)
    assert ahead.endswith("<|im_start|>user\nwhat is the")
    assert turn.startswith(ahead)
    assert draft.num_tokens == len(unpack_ids(engine.submits[1].token_ids))
    assert engine.submits[1].priority == LOWEST
    assert engine.submits[1].sampling.max_tokens == 1


def text_of(info: EngineInfo, template: str) -> ModelText:
    return ModelText(msgspec.structs.replace(info, chat_template=template), Settings())


HISTORY = Line(
    messages=[user("hi"), {"role": "assistant", "content": "ho"}],
    history=History(list(b"history"), 2),
)


@pytest.mark.parametrize("trims", [False, True])
async def test_whatever_follows_the_prompt_begins_so(engine: FakeEngine, trims: bool) -> None:
    assert engine.info is not None
    text = text_of(engine.info, TRIMMING if trims else CHAT_TEMPLATE)
    alphabet = st.sampled_from(["a", "é", "日", " ", "\n", ".", "word"])
    parts = st.lists(alphabet, max_size=60).map("".join)

    @given(parts, parts, st.sampled_from([Line(), HISTORY]))
    def check(draft: str, rest: str, line: Line) -> None:
        settled = settled_ids(text, line, KEY, draft)
        request = GenerateRequest(
            messages=[*line.messages, user(draft + rest)], history=line.history
        )
        assert text.token_ids(request)[: len(settled)] == settled
        assert len(settled) >= len(draft.strip().encode()) - 4 * module._OPEN_CHARS

    check()


# --- one after the other ------------------------------------------------------------------


async def test_while_one_runs_only_the_newest_waits(
    engine: FakeEngine, service: Service, drafts: Drafts, begun: None
) -> None:
    engine.hang()
    draft = await typed(drafts, "one ")
    await until(draft, "running")
    for text in ("one two ", "one two three ", "one two three four "):
        assert await typed(drafts, text) is draft
    engine.resume()
    assert await draft.ready()
    _, *ahead = await prompts(engine, service)
    assert [prompt.rpartition("\n")[2] for prompt in ahead] == ["one", "one two three four"]


async def test_changes_add_up(drafts: Drafts, begun: None) -> None:
    draft = await typed(drafts, "Hello wrld")
    for change in (Change(truncate=7), Change(append="orld"), Change(truncate=5, append="!")):
        assert await drafts.set(KEY, UNSET, change) is draft
    assert draft.text == "Hello!"
    await drafts.set(KEY, UNSET, Change(truncate=50))
    assert draft.text == "Hello!"


async def test_calls_at_once_are_one_draft(drafts: Drafts, begun: None) -> None:
    one, two = await asyncio.gather(
        drafts.set(KEY, UNSET, Change(append="a")), drafts.set(KEY, UNSET, Change(append="b"))
    )
    assert one is two
    assert one.text == "ab"


async def test_what_did_not_change_is_not_run_again(
    engine: FakeEngine, drafts: Drafts, begun: None
) -> None:
    draft = await typed(drafts, "one two ")
    await draft.ready()
    await typed(drafts, "one two ")
    assert await draft.ready()
    assert len(engine.submits) == 2


async def test_another_place_is_another_draft(
    engine: FakeEngine, service: Service, drafts: Drafts, begun: None
) -> None:
    draft = await typed(drafts, "one two ")
    other = await drafts.set(KEY, None, Change(append="three four "))
    assert other is not draft
    assert await other.ready()
    assert (await prompts(engine, service))[-1] == "<|im_start|>user\nthree four"


# --- it makes way -------------------------------------------------------------------------


async def test_it_is_not_begun_while_others_wait(
    engine: FakeEngine, drafts: Drafts, begun: None
) -> None:
    engine.stats.num_waiting = 1
    draft = await typed(drafts, "one two ")
    await asyncio.sleep(0.01)
    assert draft.state == "waiting"
    assert len(engine.submits) == 1
    engine.stats.num_waiting = 0
    assert await draft.ready()


async def test_it_is_stopped_while_others_wait_and_goes_on_after(
    engine: FakeEngine, drafts: Drafts, begun: None
) -> None:
    engine.hang()
    draft = await typed(drafts, "one two ")
    await until(draft, "running")
    engine.stats.num_waiting = 1  # it may be the draft itself
    await asyncio.sleep(0.01)
    assert draft.state == "running"
    engine.stats.num_waiting = 2
    await until(draft, "waiting")
    await eventually(lambda: len(engine.aborts) == 1)
    engine.stats.num_waiting = 0
    engine.resume()
    assert await draft.ready()


async def test_it_is_not_begun_while_the_server_is_half_full(
    engine: FakeEngine, sessions: Sessions, drafts: Drafts, service: Service, begun: None
) -> None:
    service._admission.max_requests = 2
    engine.will_hang("on and on")
    turn = await sessions.turn(OTHER, ask("x"), keep=True)
    with turn.generation.lease():
        draft = await typed(drafts, "one two ")
        await asyncio.sleep(0.01)
        assert draft.state == "waiting"
    assert await draft.ready()


async def test_what_is_typed_during_an_answer_follows_it(
    engine: FakeEngine, service: Service, sessions: Sessions, warmth: Warmth, drafts: Drafts,
    begun: None,
) -> None:  # fmt: skip
    engine.will_say("what?")
    engine.hang()
    turn = await sessions.turn(KEY, ask("ho"), keep=True)
    with turn.generation.lease():
        draft = await typed(drafts, "one two ")
        await asyncio.sleep(0.01)
        assert draft.state == "waiting"
        engine.resume()
        await collect(turn.generation)
    await turn.settled()
    warmth.used(KEY, [])
    assert await draft.ready()
    assert "what?<|im_end|>\n<|im_start|>user\none two" in (await prompts(engine, service))[-1]


async def test_the_turn_stops_it(
    engine: FakeEngine, warmth: Warmth, drafts: Drafts, begun: None
) -> None:
    engine.hang()
    draft = await typed(drafts, "one two ")
    await until(draft, "running")
    await warmth.ready(KEY, [])
    assert not await draft.ready()
    assert draft.state == "off"
    assert len(engine.aborts) == 1
    assert not drafts.drop(KEY)


async def test_its_failure_is_seen_when_others_have_work_too(
    engine: FakeEngine,
    service: Service,
    drafts: Drafts,
    begun: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "LOOK_S", 60.0)
    engine.hang()
    draft = await typed(drafts, "one two ")
    await until(draft, "running")
    engine.die()
    service.close()
    assert not await draft.ready()
    assert draft.state == "off"


async def test_an_engine_that_fails_it_turns_it_off_until_the_next_change(
    engine: FakeEngine, drafts: Drafts, begun: None
) -> None:
    engine.will_fail("out of luck")
    draft = await typed(drafts, "one two ")
    assert not await draft.ready()
    assert draft.state == "off"
    assert await (await typed(drafts, "one two ")).ready()


async def test_an_engine_that_dies_takes_no_more_than_the_draft(
    engine: FakeEngine, drafts: Drafts, begun: None
) -> None:
    engine.hang()
    draft = await typed(drafts, "one two ")
    await until(draft, "running")
    engine.die()
    assert not await draft.ready()


# --- bounds -------------------------------------------------------------------------------


async def test_it_is_forgotten_in_the_end(
    drafts: Drafts, begun: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FORGET_S", 0.005)
    await typed(drafts, "one two ")
    await eventually(lambda: not drafts._drafts)


async def test_the_one_left_alone_longest_makes_room(
    sessions: Sessions, drafts: Drafts, begun: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_DRAFTS", 1)
    await say(sessions, ask("hi", max_tokens=3), OTHER)
    await typed(drafts, "one two ")
    await typed(drafts, "three ", OTHER)
    assert list(drafts._drafts) == [OTHER]


async def test_a_long_one_is_run_as_far_as_fits(
    engine: FakeEngine, drafts: Drafts, begun: None
) -> None:
    assert engine.info is not None
    draft = await typed(drafts, "a " * engine.info.max_model_len)
    await draft.ready()
    ahead = [unpack_ids(submit.token_ids) for submit in engine.submits[1:]]
    assert all(len(ids) < engine.info.max_model_len for ids in ahead)


@pytest.mark.parametrize(
    "change",
    [Change(), Change("a", append="b"), Change("a", truncate=1)],
)
async def test_odd_changes_are_refused(drafts: Drafts, begun: None, change: Change) -> None:
    with pytest.raises(InvalidField, match="give text"):
        await drafts.set(KEY, UNSET, change)


async def test_fewer_than_no_characters_are_refused(drafts: Drafts, begun: None) -> None:
    with pytest.raises(InvalidField, match="at least 0"):
        await drafts.set(KEY, UNSET, Change(truncate=-1))


async def test_a_book_is_refused(drafts: Drafts, begun: None) -> None:
    with pytest.raises(InvalidField, match="the limit is 200000"):
        await typed(drafts, "a" * (module.MAX_CHARS + 1))


async def test_there_must_be_such_a_place(drafts: Drafts, begun: None) -> None:
    with pytest.raises(SessionNotFound):
        await typed(drafts, "hi", OTHER)
    with pytest.raises(MessageNotFound):
        await drafts.set(KEY, 99, Change("hi"))


async def test_they_can_be_turned_off(
    engine: FakeEngine, service: Service, sessions: Sessions, warmth: Warmth, begun: None
) -> None:
    drafts = Drafts(service, sessions, warmth, WarmSettings(drafts=False))
    draft = await typed(drafts, "one two ")
    assert not await draft.ready()
    assert draft.state == "off"
    assert len(engine.submits) == 1
