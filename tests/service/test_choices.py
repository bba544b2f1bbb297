"""Several answers to one prompt."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from lmserve.bridge import inventions
from lmserve.bridge.fake import FakeEngine
from lmserve.errors import InvalidField, Overloaded, RequestError
from lmserve.messages import unpack_ids
from lmserve.service.exposition.exposition import Exposition
from lmserve.service.generate import Generation, Service, best, collect
from lmserve.service.limits import seed_after
from lmserve.service.metrics import Metrics
from lmserve.service.prompt import ModelText
from lmserve.settings import ServerSettings, Settings
from lmserve.types import GenerateRequest
from tests.whole import gather


def ask(**fields: Any) -> GenerateRequest:
    return GenerateRequest(**{"text": "hi", "max_tokens": 3} | fields)


async def texts(generations: list[Generation]) -> list[str]:
    return [(await collect(generation))[0] for generation in generations]


async def test_n_answers_each_with_its_seed(
    engine: FakeEngine, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_calls = 0
    token_ids = ModelText.token_ids

    def counting(self: ModelText, request: GenerateRequest) -> list[int]:
        nonlocal num_calls
        num_calls += 1
        return token_ids(self, request)

    monkeypatch.setattr(ModelText, "token_ids", counting)
    engine.will_say("a").will_say("b").will_say("c")
    generations = await service.generate_all([ask(n=3, seed=7)])
    assert await texts(generations) == ["a", "b", "c"]
    assert num_calls == 1
    assert [submit.sampling.seed for submit in engine.submits] == [7, 8, 9]
    assert {submit.token_ids for submit in engine.submits} == {b"".join(
        byte.to_bytes(4, "little") for byte in b"hi"
    )}  # fmt: skip
    assert all(submit.sampling.logprobs is None for submit in engine.submits)


async def test_without_a_seed_all_differ(engine: FakeEngine, service: Service) -> None:
    await texts(await service.generate_all([ask(n=20)]))
    assert len({submit.sampling.seed for submit in engine.submits}) == 20


def test_seeds_stay_in_64_bits() -> None:
    last = 2**63 - 1
    assert [seed_after(last, index) for index in range(3)] == [last, -(2**63), -(2**63) + 1]
    assert seed_after(-1, 1) == 0


async def test_answers_of_a_prompt_follow_one_another(engine: FakeEngine, service: Service) -> None:
    asked = [ask(text="x", n=2), ask(text="y", n=2)]
    await texts(await service.generate_all(asked))
    prompts = [bytes(unpack_ids(submit.token_ids)) for submit in engine.submits]
    assert prompts == [b"x", b"x", b"y", b"y"]


async def test_the_best_are_the_likeliest_by_the_token(
    engine: FakeEngine, service: Service
) -> None:
    far = [inventions.RARE * 20]  # not among the likeliest; a visible byte
    engine.will_say([*b"ab", *far]).will_say("abc").will_say([*far * 3]).will_say("abd")
    generations = await service.generate_all([ask(n=2, best_of=4, max_tokens=None)])
    wholes = [await gather(generation) for generation in generations]
    assert all(whole.logprobs == [] for whole in wholes)  # nobody asked for them
    chosen = best(generations, 2)
    assert chosen == [generations[1], generations[3]]  # of equals the earlier
    assert best(generations, 4)[2:] == [generations[0], generations[2]]
    assert all(submit.sampling.logprobs == 0 for submit in engine.submits)
    # of the tokens "abc" and the end token
    expected = sum(each.logprob for each in inventions.logprobs_of([*b"abc", 257], 0)) / 4
    assert chosen[0].mean_logprob == pytest.approx(expected)


async def test_log_probabilities_asked_for_are_shown_of_all(
    engine: FakeEngine, service: Service
) -> None:
    generations = await service.generate_all([ask(best_of=2, logprobs=3)])
    for generation in generations:
        whole = await gather(generation)
        assert whole.logprobs == inventions.logprobs_of(whole.token_ids, 3)
    assert {submit.sampling.logprobs for submit in engine.submits} == {3}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 0}, "n"),
        ({"n": -1}, "n"),
        ({"n": 129}, "n"),
        ({"n": 2**63}, "n"),
        ({"best_of": 0}, "best_of"),
        ({"n": 3, "best_of": 2}, "best_of"),
        ({"best_of": 129}, "best_of"),
        ({"n": 2, "params": {"n": "candidateCount"}, "best_of": 1}, "best_of"),
        ({"n": 0, "params": {"n": "candidateCount"}}, "candidateCount"),
    ],
)
async def test_numbers_of_answers_out_of_range(
    engine: FakeEngine, service: Service, fields: dict[str, Any], param: str
) -> None:
    with pytest.raises(InvalidField) as caught:
        await service.generate_all([ask(**fields)])
    assert caught.value.param == param
    assert engine.submits == []


@pytest.mark.parametrize(("fields", "param"), [({"n": 2}, "n"), ({"best_of": 2}, "best_of")])
async def test_where_one_answer_is_made(
    engine: FakeEngine, service: Service, fields: dict[str, int], param: str
) -> None:
    with pytest.raises(InvalidField) as caught:
        await service.generate(ask(**fields))
    assert caught.value.param == param
    assert (service.inflight, engine.submits) == (0, [])
    engine.will_say("a")
    assert (await collect(await service.generate(ask(n=1, best_of=1))))[0] == "a"


async def test_a_call_has_only_so_many_answers(engine: FakeEngine, service: Service) -> None:
    with pytest.raises(InvalidField, match="256"):
        await service.generate_all([ask(n=100)] * 3)
    assert engine.submits == []


async def test_more_than_the_server_holds_is_a_mistake_and_not_for_later(
    engine: FakeEngine, metrics: Metrics
) -> None:
    settings = Settings(server=ServerSettings(max_queued_requests=4))
    service = Service(engine, settings, metrics)
    with pytest.raises(InvalidField, match="at most 4"):
        await service.generate_all([ask(n=5)])
    engine.will_hang()
    (first,) = await service.generate_all([ask()])
    with first.lease():
        with pytest.raises(Overloaded):  # all or none
            await service.generate_all([ask(n=4)])
        assert service.inflight == 1
        assert len(await service.generate_all([ask(n=3)])) == 3
    service.close()


async def test_a_long_prompt_is_counted_once(engine: FakeEngine, metrics: Metrics) -> None:
    settings = Settings(server=ServerSettings(max_queued_tokens=100))
    service = Service(engine, settings, metrics)
    generations = await service.generate_all([ask(text="x" * 90, n=4)])
    assert len(await texts(generations)) == 4
    service.close()


async def test_one_refused_prompt_runs_none_of_its_answers(
    engine: FakeEngine, service: Service
) -> None:
    with pytest.raises(RequestError):
        await service.generate_all([ask(n=3), ask(text="", n=3)])
    assert engine.submits == []
    assert service.inflight == 0


async def test_one_ends_and_the_others_go_on(engine: FakeEngine, service: Service) -> None:
    engine.will_hang("one").will_say("two").will_fail("bad luck")
    first, second, third = await service.generate_all([ask(n=3)])
    with second.lease(), third.lease():
        with first.lease():
            await anext(first.events())
        assert engine.aborts == [engine.submits[0].rid]
        assert (await collect(second))[0] == "two"[:3]
    assert service.inflight == 0


async def test_a_client_that_leaves_ends_all(engine: FakeEngine, service: Service) -> None:
    for _ in range(3):
        engine.will_hang("x")
    started = asyncio.Event()

    async def handler() -> None:
        await service.generate_all([ask(n=3)])
        started.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(handler())
    await started.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert len(engine.aborts) == 3
    assert service.inflight == 0


async def test_a_call_counts_once_in_request_params_n(
    engine: FakeEngine, service: Service, exposition: Exposition
) -> None:
    engine.will_say("a").will_say("bcd").will_say("e")
    await texts(await service.generate_all([ask(n=3, max_tokens=None)]))
    await texts(await service.generate_all([ask()]))
    rendered = exposition.render_counts().decode()
    values = {
        line.split("{")[0]: float(line.rsplit(" ", 1)[1])
        for line in rendered.splitlines()
        if line.startswith("vllm:request_") and "_bucket" not in line
    }
    assert values["vllm:request_params_n_count"] == 2
    assert values["vllm:request_params_n_sum"] == 4
    assert values["vllm:request_max_num_generation_tokens_count"] == 2
    assert values["vllm:request_max_num_generation_tokens_sum"] == 4 + 3  # an end token too
    assert values["vllm:request_generation_tokens_count"] == 4
