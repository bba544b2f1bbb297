"""Order, estimates, priorities, deadlines: over an engine that runs few at once."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator
from typing import Any

import pytest

from lmserve.bridge.fake import FakeEngine
from lmserve.bridge.handle import Health
from lmserve.errors import AnswerConflict, DeadlineExceeded, EngineUnavailable, Overloaded
from lmserve.service.generate import Generation, Service, collect
from lmserve.service.metrics import Metrics
from lmserve.service.sessions.sessions import Sessions
from lmserve.service.waiting import MAX_RETRY_S, Mean, Waiting, retry_after_s
from lmserve.settings import LimitSettings, ServerSettings, Settings
from lmserve.types import Done, GenerateRequest
from tests.service.conftest import Clock
from tests.service.plain import Place, finish, names
from tests.service.plain import ask as asked
from tests.service.talk import KEY, OTHER, ask, say


def text(words: str = "hi", **fields: Any) -> GenerateRequest:
    return GenerateRequest(text=words, **fields)


@pytest.fixture
def one(engine: FakeEngine) -> FakeEngine:
    """Runs one at a time."""
    return engine.will_queue(1)


class Held:
    """Generations that are read in the background."""

    def __init__(self, service: Service):
        self.service = service
        self.readers: list[asyncio.Task[tuple[str, Done]]] = []

    async def ask(self, request: GenerateRequest) -> Generation:
        made: asyncio.Future[Generation] = asyncio.get_running_loop().create_future()

        async def read() -> tuple[str, Done]:
            generation = await self.service.generate(request)
            made.set_result(generation)
            return await collect(generation)

        self.readers.append(asyncio.create_task(read()))
        return await made


@pytest.fixture
async def held(service: Service) -> AsyncIterator[Held]:
    held = Held(service)
    yield held
    for reader in held.readers:
        reader.cancel()
    await asyncio.gather(*held.readers, return_exceptions=True)


async def begun(service: Service, generation: Generation) -> None:
    async with asyncio.timeout(10):
        while service.position(generation) is not None:  # noqa: ASYNC110
            await asyncio.sleep(0)


# --- what is measured -----------------------------------------------------------------------


def test_a_mean_follows_what_was_seen_lately() -> None:
    mean = Mean()
    assert mean.value is None
    mean.add(4.0)
    assert mean.value == 4.0
    for _ in range(100):
        mean.add(1.0)
    assert mean.value == pytest.approx(1.0, abs=0.001)


@pytest.mark.parametrize(
    ("wait_s", "seconds"), [(None, 1), (-3.0, 1), (0.0, 1), (1.2, 2), (1e9, MAX_RETRY_S)]
)
def test_retry_after_is_within_a_minute(wait_s: float | None, seconds: int) -> None:
    assert retry_after_s(wait_s) == seconds


async def test_intervals_are_measured_only_while_somebody_waits(one: FakeEngine) -> None:
    clock = Clock()
    waiting = Waiting(one, clock)
    first = waiting.enter(0)
    assert waiting.position(first) == (0, 0.0)  # there is a place
    waiting.begin(first)
    assert waiting.position(first) is None
    clock.now_s += 100  # nobody waits
    second, third = waiting.enter(0), waiting.enter(0)
    assert waiting.position(second) == (0, None)
    assert waiting.position(third) == (1, None)
    clock.now_s += 4
    waiting.end(first)
    waiting.begin(second)
    assert waiting.position(third) == (0, 4.0)
    assert waiting.estimate_s(0) == 8.0
    clock.now_s += 1
    assert waiting.position(third) == (0, 3.0)
    clock.now_s += 1000  # never negative
    assert waiting.position(third) == (0, 0.0)
    assert waiting.estimate_s(0) == 4.0
    assert waiting.retry_after_s() == 4
    waiting.end(third)
    waiting.end(third)
    waiting.end(second)
    assert waiting.estimate_s(0) == 0.0


async def test_nobody_knows_how_long_an_engine_needs_that_is_not_ready(engine: FakeEngine) -> None:
    clock = Clock()
    waiting = Waiting(engine, clock)
    engine.hang()
    place = waiting.enter(0)
    assert waiting.position(place) == (0, None)
    assert waiting.estimate_s(0) is None
    assert waiting.retry_after_s() == engine.health().retry_after_s == 5
    clock.now_s += 100
    engine.resume()  # another one
    assert waiting.position(place) == (0, 0.0)
    waiting.begin(place)
    engine.will_queue(1)
    assert waiting.estimate_s(0) is None  # that it was started anew is no measure
    assert waiting.retry_after_s() == 1


async def test_lower_priorities_come_before_higher_ones(one: FakeEngine) -> None:
    waiting = Waiting(one, Clock())
    waiting.begin(waiting.enter(0))
    late, early, urgent = waiting.enter(5), waiting.enter(3), waiting.enter(0)
    positions = [waiting.position(place) for place in (urgent, early, late)]
    assert positions == [(0, None), (1, None), (2, None)]


@pytest.mark.parametrize("state", ["loading", "restarting", "stuck", "sleeping", "failed"])
def test_an_engine_that_is_not_ready_needs_a_while(state: Any) -> None:
    assert 1 < Health(state, "", 0.0).retry_after_s <= MAX_RETRY_S


# --- who waits ------------------------------------------------------------------------------


async def test_position_and_estimate_while_it_waits(
    one: FakeEngine, service: Service, held: Held, clock: Clock
) -> None:
    one.will_hang("a").will_hang("b").will_hang("c")
    first, second, third = [await held.ask(text()) for _ in range(3)]
    await begun(service, first)
    assert [service.position(each) for each in (first, second, third)] == [
        None,
        (0, None),
        (1, None),
    ]
    clock.now_s += 6
    first.abort()
    await begun(service, second)
    assert service.position(third) == (0, 6.0)
    second.abort()
    await begun(service, third)
    third.abort()
    assert service.position(third) is None


async def test_the_engine_is_told_the_priority(
    one: FakeEngine, service: Service, held: Held
) -> None:
    one.will_hang("a")
    first = await held.ask(text())
    await begun(service, first)
    low, high = await held.ask(text(priority=9, max_tokens=3)), await held.ask(text(max_tokens=3))
    assert [submit.priority for submit in one.submits] == [0, 9, 0]
    assert (service.position(high), service.position(low)) == ((0, None), (1, None))
    first.abort()
    await begun(service, high)
    assert service.position(low) is not None
    assert (await held.readers[1])[1].finish_reason == "length"


async def test_a_death_leaves_nobody_waiting(one: FakeEngine, service: Service) -> None:
    one.will_hang("a").will_hang("b")
    first, second = [await service.generate(text()) for _ in range(2)]
    await begun(service, first)
    one.die()
    assert service.position(second) is None
    with pytest.raises(EngineUnavailable) as caught:
        await service.generate(text())
    assert caught.value.retry_after_s > 1
    one.resume()
    assert service._waiting.estimate_s(0) is None  # the first has a place until it is read
    first.abort()
    assert service._waiting.estimate_s(0) == 0.0


async def test_the_measure_says_when_to_come_back(engine: FakeEngine, clock: Clock) -> None:
    settings = Settings(server=ServerSettings(model_name="fake", max_queued_requests=2))
    service = Service(engine.will_queue(1), settings, Metrics(engine, settings), clock=clock)
    engine.will_hang("a").will_hang("b")
    first, second = [await service.generate(text()) for _ in range(2)]
    await begun(service, first)
    clock.now_s += 7
    first.abort()
    await begun(service, second)
    third = await service.generate(text())
    with pytest.raises(Overloaded) as caught:
        await service.generate(text())
    assert caught.value.retry_after_s == 7
    third.abort()
    second.abort()
    service.close()


async def test_who_waits_for_a_session_is_told_from_its_turns(
    engine: FakeEngine, sessions: Sessions
) -> None:
    engine.will_say("a")
    await say(sessions, ask("one"))
    sessions.turns._length.add(50.0)
    slot = await sessions.turns.enter(KEY)
    waiters = [asyncio.create_task(sessions.turns.enter(KEY)) for _ in range(8)]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded) as caught:
        await sessions.turns.enter(KEY)
    assert 20 <= caught.value.retry_after_s <= MAX_RETRY_S
    for waiter in waiters:
        waiter.cancel()
    await asyncio.gather(*waiters, return_exceptions=True)
    sessions.turns.leave(slot)


# --- deadlines ------------------------------------------------------------------------------


async def test_what_cannot_begin_in_time_is_refused_at_once(
    one: FakeEngine, service: Service, held: Held, clock: Clock
) -> None:
    one.will_hang("a").will_hang("b").will_hang("c")
    first, second = [await held.ask(text()) for _ in range(2)]
    await begun(service, first)
    clock.now_s += 10
    first.abort()
    await begun(service, second)  # takes 10 s, it was seen
    with pytest.raises(DeadlineExceeded, match=r"in about 10\.0 s") as caught:
        await service.generate(text(deadline_s=4))
    assert (caught.value.status, caught.value.retry_after_s) == (504, 6)
    assert caught.value.param == "deadline_s"
    assert (len(one.submits), service.inflight) == (2, 1)
    third = await held.ask(text(deadline_s=11))
    assert service.position(third) == (0, 10.0)


async def test_without_a_measure_nothing_is_refused(
    one: FakeEngine, service: Service, held: Held
) -> None:
    one.will_hang("a")
    await begun(service, await held.ask(text()))
    await held.ask(text(deadline_s=1000))
    assert len(one.submits) == 2


async def test_who_would_wait_for_too_long_is_refused(one: FakeEngine, clock: Clock) -> None:
    settings = Settings(limits=LimitSettings(max_queue_s=4.0))
    metrics = Metrics(one, settings)
    service = Service(one, settings, metrics, clock=clock)
    one.will_hang("a").will_hang("b").will_hang("c")
    first, second, third = [await service.generate(text()) for _ in range(3)]  # nobody knows yet
    await begun(service, first)
    clock.now_s += 10
    first.abort()
    await begun(service, second)  # takes 10 s, it was seen
    with pytest.raises(Overloaded, match=r"max_queue_s") as caught:
        await service.generate(text())
    assert (caught.value.status, caught.value.retry_after_s) == (429, 16)
    with pytest.raises(Overloaded, match=r"max_queue_s"):
        await service.embed([text()], "mean")
    assert (len(one.submits), service.inflight, metrics.rejections["wait"]) == (3, 2, 2)
    third.abort()
    second.abort()
    one.will_say("ok")
    assert (await collect(await service.generate(text())))[0] == "ok"
    service.close()


async def test_a_deadline_that_passes_in_the_queue(
    one: FakeEngine, service: Service, held: Held, metrics: Metrics
) -> None:
    one.will_hang("a")
    first = await held.ask(text())
    await begun(service, first)
    late = await held.ask(text(deadline_s=0.2))
    with pytest.raises(DeadlineExceeded, match="not begun") as caught:
        await held.readers[1]
    assert caught.value.retry_after_s >= 1
    assert late.abort_reason == "deadline"
    assert one.aborts == [2]
    assert not first.ended  # its neighbour
    assert metrics.finished["abort"] == 1


async def test_a_deadline_that_passes_before_the_first_token(
    engine: FakeEngine, service: Service
) -> None:
    engine.will_hang()
    generation = await service.generate(text(deadline_s=0.2))
    seen: list[Any] = []
    generation.on_ended(seen.append)
    with pytest.raises(DeadlineExceeded):
        await collect(generation)
    assert isinstance(seen[0], DeadlineExceeded)


async def test_a_deadline_that_passes_in_mid_answer(engine: FakeEngine, service: Service) -> None:
    engine.will_hang("one ", "two")
    generation = await service.generate(text(deadline_s=0.3))
    said, done = await collect(generation)
    assert (said, done.finish_reason, generation.abort_reason) == ("one two", "abort", "deadline")


async def test_a_deadline_nobody_reads_for(engine: FakeEngine, service: Service) -> None:
    engine.will_hang()
    generation = await service.generate(text(deadline_s=0.2))
    ended = asyncio.get_running_loop().create_future()
    generation.on_ended(ended.set_result)
    assert isinstance(await ended, DeadlineExceeded)
    assert service.inflight == 0


async def test_an_answer_in_time_leaves_no_timer(engine: FakeEngine, service: Service) -> None:
    engine.will_say("quick")
    generation = await service.generate(text(deadline_s=3600))
    assert (await collect(generation))[0] == "quick"
    gone = asyncio.get_running_loop().create_future()
    weak = weakref.ref(generation, lambda _: gone.set_result(None))
    del generation
    gc.collect()
    await gone
    assert weak() is None  # no timer holds it


async def test_waiting_for_a_session_takes_from_the_deadline(
    engine: FakeEngine, sessions: Sessions
) -> None:
    engine.will_hang("a")
    turn = await sessions.turn(KEY, ask("one"), keep=True)
    with turn.generation.lease():
        with pytest.raises(DeadlineExceeded):
            await sessions.turn(KEY, ask("two", deadline_s=0.2), keep=True)
        engine.will_say("b")
        await say(sessions, ask("three", deadline_s=60), OTHER)
        turn.generation.abort()
        await collect(turn.generation)
    engine.will_say("c")
    assert (await say(sessions, ask("four", deadline_s=60)))[0] == "c"


async def test_a_turn_that_missed_its_deadline_is_not_kept(
    engine: FakeEngine, sessions: Sessions
) -> None:
    engine.will_hang()
    turn = await sessions.turn(KEY, ask("one", deadline_s=0.2), keep=True)
    with pytest.raises(DeadlineExceeded):
        await collect(turn.generation)
    await turn.settled()
    assert turn.answer is None


async def test_a_shutdown_is_told_as_the_reason(engine: FakeEngine, service: Service) -> None:
    engine.will_hang("a")
    generation = await service.generate(text(deadline_s=60))
    reader = asyncio.create_task(collect(generation))
    await asyncio.sleep(0)
    await service.drain(0)
    assert (await reader)[1].finish_reason == "abort"
    assert generation.abort_reason == "shutdown"


# --- changed while it runs ------------------------------------------------------------------


async def test_max_tokens_is_changed_in_mid_answer(engine: FakeEngine, service: Service) -> None:
    generation = await service.generate(text(max_tokens=5))
    with generation.lease():
        await anext(generation.events())
        assert service.update(generation, max_tokens=9) == 1
        done = [event async for event in generation.events()][-1]
    assert isinstance(done, Done)
    assert (done.finish_reason, done.usage.completion_tokens) == ("length", 9)
    assert generation.sampling.max_tokens == 9
    with pytest.raises(AnswerConflict):
        service.update(generation, max_tokens=20)


async def test_what_is_said_is_no_longer_than_it_may_be_now(
    engine: FakeEngine, service: Service
) -> None:
    engine.will_hang("one ")
    generation = await service.generate(text())
    with generation.lease():
        await anext(generation.events())
        service.update(generation, max_tokens=2)
        (done,) = [event async for event in generation.events()]
    assert isinstance(done, Done)
    assert (done.finish_reason, done.usage.completion_tokens) == ("length", 4)


async def test_max_tokens_stays_within_the_context(engine: FakeEngine, service: Service) -> None:
    engine.will_hang("a")
    generation = await service.generate(text("abc", max_tokens=5))
    service.update(generation, max_tokens=10**9, temperature=0.25)
    (update,) = engine.updates
    assert update.sampling.max_tokens == 8192 - 3
    assert update.sampling.temperature == 0.25
    assert update.sampling.seed == engine.submits[0].sampling.seed
    generation.abort()


async def test_stop_strings_alone_need_no_word_to_the_engine(
    engine: FakeEngine, service: Service
) -> None:
    engine.will_say("one S", "T", "OP two END three")
    generation = await service.generate(text(stop=("STOP",)))
    said = ""
    with generation.lease():
        said += (await anext(generation.events())).text
        assert said == "one "  # "S" is held
        assert service.update(generation, stop=["END"]) == len("one S")
        async for event in generation.events():
            said += "" if isinstance(event, Done) else event.text
    assert said == "one STOP two "
    assert engine.updates == []


# --- answers that are kept --------------------------------------------------------------------


async def test_a_kept_answer_tells_its_place(place: Place, engine: FakeEngine) -> None:
    engine.will_queue(1).will_hang("a").will_say("b")
    first = await place.answers.begin(asked("one"))
    second = await place.answers.begin(asked("two"))
    third = await place.answers.begin(asked("three"))
    with third.stream.reading(1) as reader:
        await reader.wait()
    await place.answers.cancel("", first.record.id)
    await finish(second)
    await finish(third)
    assert "Queued" not in names(first.stream)
    assert "Queued" in names(third.stream)


async def test_a_kept_answer_whose_deadline_passes(place: Place, engine: FakeEngine) -> None:
    engine.will_hang("Hel", "lo")
    answer = await place.answers.begin(asked("one", fields={"deadline_s": 0.5}))
    record = await finish(answer)
    assert (record.status, record.reason, record.text) == ("incomplete", "deadline", "Hello")


async def test_a_kept_answer_waits_for_its_session_within_its_deadline(
    place: Place, engine: FakeEngine
) -> None:
    engine.will_say("a").will_hang("b")
    session = (await finish(await place.answers.begin(asked("one")))).session
    running = await place.answers.begin(asked("two", session=session))
    with pytest.raises(DeadlineExceeded):
        await place.answers.begin(asked("three", session=session, fields={"deadline_s": 0.01}))
    await place.answers.cancel("", running.record.id)
    await finish(running)
    engine.will_say("c")
    last = await place.answers.begin(asked("four", session=session, fields={"deadline_s": 60.0}))
    assert (await finish(last)).text == "c"
