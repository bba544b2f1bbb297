"""What one API key may take: places, requests and tokens a minute, a share of the queue."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from lmserve.bridge.fake import FakeEngine
from lmserve.errors import EngineUnavailable, InvalidField, Overloaded, RateLimited
from lmserve.service.admission import Admission
from lmserve.service.generate import Service, collect
from lmserve.service.metrics import Metrics
from lmserve.service.quotas import Quotas
from lmserve.settings import ServerSettings, Settings
from lmserve.types import GenerateRequest, KeyLimits
from tests.service.conftest import Clock

LIMITS = {
    "few": KeyLimits(max_requests=2),
    "slow": KeyLimits(requests_per_minute=3),
    "short": KeyLimits(tokens_per_minute=60),
}


def limits_of(owner: str) -> KeyLimits:
    return LIMITS.get(owner, KeyLimits())


@pytest.fixture
def quotas(clock: Clock) -> Quotas:
    return Quotas(limits_of, clock)


def refusal(quotas: Quotas, owner: str, num: int = 1) -> RateLimited:
    with pytest.raises(RateLimited) as caught:
        quotas.check(owner, num)
    assert (caught.value.status, caught.value.code) == (429, "rate_limit_exceeded")
    return caught.value


def test_places(quotas: Quotas) -> None:
    for _ in range(2):
        quotas.check("few", 1)
        quotas.enter("few", 1)
    error = refusal(quotas, "few")
    assert error.limit == "key_requests"
    assert "max_key_requests" in error.message
    quotas.leave("few", 0)
    quotas.check("few", 1)
    quotas.check("other", 1)
    with pytest.raises(InvalidField):
        quotas.check("few", 3)


def test_requests_a_minute(quotas: Quotas, clock: Clock) -> None:
    for _ in range(3):
        quotas.check("slow", 1)
        quotas.enter("slow", 1)
    error = refusal(quotas, "slow")
    assert (error.limit, error.retry_after_s) == ("key_rate", 20)
    (rate,) = quotas.of("slow").rates()
    assert (rate.name, rate.limit, rate.remaining, rate.reset_s) == ("requests", 3, 0, 60.0)
    clock.now_s += error.retry_after_s
    quotas.check("slow", 1)
    clock.now_s += 1e6
    assert quotas.of("slow").rates()[0].remaining == 3  # and no more


def test_tokens_a_minute(quotas: Quotas, clock: Clock) -> None:
    quotas.enter("short", 1)
    quotas.add_tokens("short", 20)
    quotas.spend("short", 70)  # an answer is never cut: what is owed is waited for
    error = refusal(quotas, "short")
    assert (error.limit, error.retry_after_s) == ("key_tokens", 31)
    clock.now_s += 31
    quotas.check("short", 1)
    with pytest.raises(RateLimited):
        quotas.add_tokens("short", 20)
    clock.now_s += 29
    quotas.add_tokens("short", 20)


def test_a_prompt_over_the_limit_by_itself_runs_after_a_minute_of_rest(
    quotas: Quotas, clock: Clock
) -> None:
    quotas.enter("short", 1)
    quotas.add_tokens("short", 100)
    assert refusal(quotas, "short").retry_after_s == 41
    clock.now_s += 99
    with pytest.raises(RateLimited):
        quotas.add_tokens("short", 100)
    clock.now_s += 1
    quotas.add_tokens("short", 100)


def test_a_limit_that_is_changed_holds_at_once(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    quotas = Quotas(limits_of, clock)
    quotas.enter("slow", 1)
    monkeypatch.setitem(LIMITS, "slow", KeyLimits(requests_per_minute=1))
    assert refusal(quotas, "slow").retry_after_s == 60
    monkeypatch.setitem(LIMITS, "slow", KeyLimits())
    quotas.check("slow", 1)


def test_owners_that_are_gone_are_forgotten(quotas: Quotas) -> None:
    quotas.enter("slow", 1)
    for number in range(2000):
        quotas.enter(f"{number}", 1)
        quotas.leave(f"{number}", 0)
    assert len(quotas._quotas) < 300
    assert quotas.of("slow").num_requests == 1


# --- the queue is shared ----------------------------------------------------------------------


def test_one_key_never_fills_the_queue(clock: Clock) -> None:
    admission = Admission(64, 6400, quotas=Quotas(limits_of, clock))
    num = 0
    with pytest.raises(RateLimited) as caught:
        for num in range(64):  # noqa: B007
            admission.enter(owner="greedy")
    assert num == 56
    assert caught.value.limit == "key_share"
    for _ in range(7):
        admission.enter(owner="another")
    with pytest.raises(RateLimited):
        admission.enter(owner="greedy")
    admission.enter(owner="third")


@pytest.mark.parametrize("size", [1, 2, 7, 8, 9, 32, 35, 36, 64])
def test_what_one_call_may_ask_for_it_gets_of_an_empty_queue(clock: Clock, size: int) -> None:
    admission = Admission(size, 6400, quotas=Quotas(limits_of, clock))
    most = admission.most_places("one")
    assert admission.most_places("few") == min(2, most)
    if most < size:
        with pytest.raises(RateLimited):
            admission.enter(most + 1, "one")
    assert len(admission.enter(most, "one")) == most
    assert Admission(size, 6400).most_places("") == size


def test_one_key_never_fills_it_with_tokens(clock: Clock) -> None:
    admission = Admission(64, 800, quotas=Quotas(limits_of, clock))
    greedy = admission.enter(4, "greedy")
    for ticket in greedy[:3]:
        admission.add_tokens({ticket: 200})
    with pytest.raises(RateLimited):
        admission.add_tokens({greedy[3]: 190})
    (other,) = admission.enter(owner="another")
    admission.add_tokens({other: 190})
    other.release()
    for ticket in greedy:
        ticket.release()
    assert (admission.num_requests, admission.num_tokens) == (0, 0)


def test_several_prompts_are_counted_as_one_that_leaves_room(clock: Clock) -> None:
    admission = Admission(64, 800, quotas=Quotas(limits_of, clock))
    assert (admission.most_tokens("greedy"), admission.most_tokens("")) == (700, 800)
    call = admission.enter(3, "greedy")
    with pytest.raises(RateLimited) as caught:
        admission.add_tokens(dict.fromkeys(call, 234), several=True)
    assert caught.value.limit == "key_share"
    assert admission.num_tokens == 0
    admission.add_tokens(dict(zip(call, (234, 233, 233), strict=True)), several=True)
    call[0].release()
    assert admission.num_tokens == 466


def test_of_a_refused_call_no_tokens_are_taken(quotas: Quotas, clock: Clock) -> None:
    admission = Admission(64, 800, quotas=quotas)
    (first,) = admission.enter(owner="short")
    admission.add_tokens({first: 20})
    call = admission.enter(3, "short")
    with pytest.raises(RateLimited) as caught:
        admission.add_tokens(dict.fromkeys(call, 20), several=True)
    assert (caught.value.limit, caught.value.retry_after_s) == ("key_tokens", 20)
    assert quotas.of("short").rates()[0].remaining == 40
    admission.add_tokens(dict.fromkeys(call[:2], 20), several=True)
    assert quotas.of("short").rates()[0].remaining == 0


def test_without_keys_all_of_it_is_there(clock: Clock) -> None:
    admission = Admission(40, 800, quotas=Quotas(limits_of, clock))
    tickets = admission.enter(40)
    with pytest.raises(Overloaded):
        admission.enter()
    for ticket in tickets:
        ticket.release()
    assert admission.num_requests == 0


# --- of the service ---------------------------------------------------------------------------


@pytest.fixture
async def limited(engine: FakeEngine, metrics: Metrics, clock: Clock) -> AsyncIterator[Service]:
    settings = Settings(server=ServerSettings(model_name="fake"))
    service = Service(engine, settings, metrics, limits_of=limits_of, clock=clock)
    yield service
    service.close()
    assert service.inflight == 0


async def answer(service: Service, owner: str) -> None:
    request = GenerateRequest(text="hi", owner=owner, max_tokens=8)
    await collect(await service.generate(request))


async def test_what_ran_is_counted_and_refused_by_reason(
    limited: Service, engine: FakeEngine, metrics: Metrics
) -> None:
    for _ in range(3):
        await answer(limited, "slow")
    with pytest.raises(RateLimited):
        await answer(limited, "slow")
    assert metrics.rejections["key_rate"] == 1
    assert metrics.keys["slow"].num_rejected == 1
    await answer(limited, "short")
    (rate,) = limited.rates("short")
    usage = metrics.keys["short"]
    assert rate.remaining == 60 - usage.prompt_tokens - usage.answer_tokens
    assert limited.rates("other") == []


async def test_it_is_the_same_for_what_makes_no_answer(limited: Service) -> None:
    request = GenerateRequest(text="hi", owner="slow")
    await limited.encode([request], add_bos=True, owner="slow")
    await limited.embed([request], "mean")
    await limited.score([request], ["yes", "no"])
    with pytest.raises(RateLimited):
        await limited.encode([request], add_bos=True, owner="slow")
    with pytest.raises(RateLimited):
        await limited.prefill([1, 2], "slow")
    many = [GenerateRequest(text=f"hi {number}", owner="few") for number in range(5)]
    assert len(await limited.embed(many, "mean")) == 5  # two by two


# --- calls of several prompts -----------------------------------------------------------------


def several(owner: str, *lengths: int) -> list[GenerateRequest]:
    return [GenerateRequest(text="x" * num, owner=owner, max_tokens=1) for num in lengths]


async def run_all(service: Service, requests: list[GenerateRequest]) -> None:
    for generation in await service.generate_all(requests):
        await collect(generation)


@pytest.fixture
async def small(engine: FakeEngine, metrics: Metrics, clock: Clock) -> AsyncIterator[Service]:
    """Takes 800 tokens, of one key 700."""
    settings = Settings(server=ServerSettings(model_name="fake", max_queued_tokens=800))
    service = Service(engine, settings, metrics, limits_of=limits_of, clock=clock)
    yield service
    service.close()
    assert (service.inflight, service.load().num_tokens) == (0, 0)


@pytest.mark.parametrize(("owner", "most"), [("", 800), ("a", 700)])
async def test_a_call_that_never_fits_is_a_mistake_and_not_for_later(
    small: Service, engine: FakeEngine, owner: str, most: int
) -> None:
    calls = (small.generate_all, lambda requests: small.embed(requests, "mean"))
    for call in calls:
        with pytest.raises(InvalidField, match=rf"{most} tokens.*max_queued_tokens") as caught:
            await call(several(owner, *[100] * (most // 100), 1))
        assert caught.value.param == "prompt"
        assert (small.inflight, small.load().num_tokens, engine.submits) == (0, 0, [])
    await run_all(small, several(owner, *[100] * (most // 100)))
    await run_all(small, several(owner, 900))  # one that cannot be parted runs alone


async def test_a_call_that_fits_later_is_refused_as_one(
    small: Service, engine: FakeEngine, metrics: Metrics
) -> None:
    engine.will_hang()
    (first,) = await small.generate_all(several("a", 100))
    with first.lease():
        with pytest.raises(RateLimited, match="max_queued_tokens"):
            await run_all(small, several("a", *[100] * 6, 1))
        with pytest.raises(Overloaded, match="max_queued_tokens"):
            await run_all(small, several("", *[100] * 7, 1))
        assert (small.inflight, small.load().num_tokens) == (1, 100)
        assert len(engine.submits) == 1
        await run_all(small, several("a", *[100] * 6))
    assert (metrics.rejections["key_share"], metrics.rejections["tokens"]) == (1, 1)
    await run_all(small, several("a", *[100] * 6, 1))


async def test_a_refused_call_keeps_its_keys_tokens(
    limited: Service, engine: FakeEngine, metrics: Metrics, clock: Clock
) -> None:
    async def refused(error: type[Exception], *lengths: int) -> None:
        (rate,) = limited.rates("short")
        with pytest.raises(error):
            await run_all(limited, several("short", *lengths))
        assert limited.rates("short") == [rate]
        assert limited.inflight == 0

    await run_all(limited, several("short", 19))
    await refused(RateLimited, 20, 21)
    assert metrics.rejections["key_tokens"] == 1
    await refused(InvalidField, 20, 0)  # a later one is wrong
    limited.on_start = lambda _: engine.die()  # as one of several has begun
    await refused(EngineUnavailable, 10, 10)
    engine.resume()
    limited.on_start = None
    await run_all(limited, several("short", 19, 19))  # and two of their answers
    clock.now_s += 60
    await run_all(limited, several("short", 50, 50))  # over the limit: of a full bucket


async def test_what_comes_at_once_is_paid_back(
    limited: Service, engine: FakeEngine, clock: Clock
) -> None:
    """How long an answer becomes is known at its end: until then only prompts count."""
    for _ in range(6):
        engine.will_say(*"x" * 30, finish="length")
    asked = [GenerateRequest(text="hi", owner="short", max_tokens=30)] * 6
    for generation in [await limited.generate(request) for request in asked]:
        await collect(generation)
    with pytest.raises(RateLimited) as caught:
        await limited.generate(asked[0])
    owed = 6 * (2 + 30) - 60
    assert caught.value.retry_after_s == owed + 1
    clock.now_s += owed + 2
    await collect(await limited.generate(asked[0]))
