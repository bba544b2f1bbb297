"""Prompts that are run and not answered: embeddings and likelihoods."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from lmserve.bridge import inventions
from lmserve.bridge.fake import FakeEngine
from lmserve.errors import (
    DeadlineExceeded,
    EngineError,
    EngineUnavailable,
    InvalidField,
    ModelNotFound,
    Overloaded,
    PromptTooLong,
    RequestError,
)
from lmserve.messages import unpack_ids
from lmserve.service.generate import Service
from lmserve.service.metrics import Metrics
from lmserve.service.rating.prompts import MAX_TOGETHER
from lmserve.settings import ServerSettings, Settings
from lmserve.types import GenerateRequest

Call = Callable[[Service, list[GenerateRequest]], Coroutine[Any, Any, Any]]
CALLS: dict[str, Call] = {
    "embed": lambda service, requests: service.embed(requests, "mean"),
    "score": lambda service, requests: service.score(requests, ["yes", [1]]),
    "perplexity": lambda service, requests: service.perplexity(requests),
}
every_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


def texts(*texts: str, **fields: Any) -> list[GenerateRequest]:
    return [GenerateRequest(text=text, **fields) for text in texts]


async def submitted(engine: FakeEngine, num: int) -> None:
    for _ in range(10_000):
        if len(engine.submits) >= num:
            return
        await asyncio.sleep(0.001)  # a thread works for it
    raise AssertionError("nothing was submitted")


def likelihood(token_ids: bytes) -> float:
    return math.fsum(each.logprob for each in inventions.logprobs_of([*token_ids], 0))


@pytest.mark.parametrize("pooling", ["mean", "last"])
async def test_embeddings_in_order(engine: FakeEngine, service: Service, pooling: Any) -> None:
    found = await service.embed([*texts("a", "bc"), GenerateRequest(token_ids=[1, 2, 3])], pooling)
    assert [each.vector for each in found] == [
        inventions.embedding_of([*ids], pooling) for ids in (b"a", b"bc", b"\1\2\3")
    ]
    assert [each.num_tokens for each in found] == [1, 2, 3]
    assert {each.model for each in found} == {"fake"}
    assert {submit.sampling.max_tokens for submit in engine.submits} == {0}


async def test_many_run_a_few_at_a_time(
    engine: FakeEngine, service: Service, metrics: Metrics
) -> None:
    engine.will_queue(1000)
    most = 0

    def watch(_: Any) -> None:
        nonlocal most
        most = max(most, service.inflight)

    engine.on_step = watch
    num = 3 * MAX_TOGETHER + 1
    found = await service.embed(texts(*["x" * (1 + i % 5) for i in range(num)]), "last")
    assert [each.num_tokens for each in found] == [1 + i % 5 for i in range(num)]
    assert most == MAX_TOGETHER
    assert metrics.finished["stop"] == num
    assert service.inflight == 0


async def test_scores_of_each_label_after_each_prompt(engine: FakeEngine, service: Service) -> None:
    scores = await service.score(texts("ab", "c"), ["yes", [*b"no"], "m"])
    expected = [likelihood(b"yes"), likelihood(b"no"), likelihood(b"m")]
    assert [[each.logprob for each in row] for row in scores] == [expected] * 2
    assert [[each.num_tokens for each in row] for row in scores] == [[3, 2, 1]] * 2
    assert [each.num_prompt_tokens for each in scores[0]] == [5, 4, 3]
    run = [(bytes(unpack_ids(submit.token_ids)), submit.sampling) for submit in engine.submits]
    assert [(ids, sampling.prompt_logprobs_start) for ids, sampling in run] == [
        (b"abyes", 2), (b"abno", 2), (b"abm", 2), (b"cyes", 1), (b"cno", 1), (b"cm", 1)
    ]  # fmt: skip


async def test_perplexity_of_all_but_the_first_token(service: Service) -> None:
    found = await service.perplexity(texts("abc", "a"))
    assert [each.logprob for each in found] == [likelihood(b"bc"), 0.0]
    assert [each.num_tokens for each in found] == [2, 0]


@every_call
async def test_a_prompt_as_long_as_the_context(
    engine: FakeEngine, service: Service, call: Call
) -> None:
    assert engine.info is not None
    most = engine.info.max_model_len - (3 if call is CALLS["score"] else 0)
    assert await call(service, texts("x" * most))
    with pytest.raises(PromptTooLong):
        await call(service, texts("a", "x" * (most + 1)))


@every_call
@pytest.mark.parametrize(
    ("requests", "error"),
    [
        ([], InvalidField),
        (texts("a", ""), InvalidField),
        ([GenerateRequest(token_ids=[-1])], InvalidField),
        ([GenerateRequest(token_ids=[2**31])], InvalidField),
        ([GenerateRequest(token_ids=[2**63])], InvalidField),
        (texts("a", model="other"), ModelNotFound),
        (texts("a", priority=101), InvalidField),
        (texts("a", deadline_s=-1.0), InvalidField),
        (texts("\ud800"), RequestError),
        (texts("x" * 10**6), PromptTooLong),
        (texts(*["a"] * 2049), InvalidField),
    ],
)
async def test_refused(
    engine: FakeEngine,
    service: Service,
    call: Call,
    requests: list[GenerateRequest],
    error: type[RequestError],
) -> None:
    with pytest.raises(error):
        await call(service, requests)
    assert engine.submits == []
    assert service.inflight == 0


@pytest.mark.parametrize(
    ("labels", "param"),
    [
        ([], "labels"),
        (["a", ""], "labels[1]"),
        ([[]], "labels[0]"),
        ([[1], [-1]], "labels[1][0]"),
        ([[2**31]], "labels[0][0]"),
        (["x" * 10**7], "labels[0]"),
        (["a"] * 2049, "prompt"),
    ],
)
async def test_labels_that_cannot_be(
    engine: FakeEngine, service: Service, labels: list[Any], param: str
) -> None:
    with pytest.raises(RequestError) as caught:
        await service.score(texts("a"), labels)
    assert caught.value.param == param
    assert engine.submits == []


@every_call
async def test_one_that_fails_ends_all(engine: FakeEngine, service: Service, call: Call) -> None:
    engine.will_hang().will_fail("out of luck").will_hang()
    with pytest.raises(EngineError, match="out of luck"):
        await call(service, texts("a", "b", "c"))
    assert service.inflight == 0
    assert engine.stats.num_running == 0


@every_call
async def test_a_client_that_leaves_ends_all(
    engine: FakeEngine, service: Service, call: Call
) -> None:
    engine.will_hang().will_hang().will_hang().will_hang()
    task = asyncio.create_task(call(service, texts("a", "b")))
    await submitted(engine, 2)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert service.inflight == 0
    assert engine.stats.num_running == 0


@every_call
async def test_no_room(engine: FakeEngine, metrics: Metrics, call: Call) -> None:
    settings = Settings(server=ServerSettings(max_queued_requests=2, max_queued_tokens=8))
    service = Service(engine, settings, metrics)
    engine.will_hang()
    first = await service.generate(GenerateRequest(text="abc"))
    with first.lease():
        with pytest.raises(Overloaded):
            await call(service, texts("a", "b"))
        with pytest.raises(Overloaded):
            await call(service, texts("a" * 7))
        assert service.inflight == 1
    assert await call(service, texts("a" * 20))  # alone, it may be as long as it likes
    assert service.inflight == 0
    service.close()


@every_call
async def test_in_time_or_not_at_all(engine: FakeEngine, service: Service, call: Call) -> None:
    engine.will_hang()
    with pytest.raises(DeadlineExceeded):
        await call(service, texts("a", deadline_s=0.01))
    assert service.inflight == 0


@every_call
async def test_the_server_shuts_down(engine: FakeEngine, service: Service, call: Call) -> None:
    engine.will_hang()
    task = asyncio.create_task(call(service, texts("a")))
    await submitted(engine, 1)
    await service.drain(0)
    with pytest.raises(EngineUnavailable):
        await task
    with pytest.raises(EngineUnavailable):
        await call(service, texts("a"))


async def test_the_client_ends_it_by_its_id(engine: FakeEngine, service: Service) -> None:
    engine.will_hang()
    task = asyncio.create_task(service.embed(texts("a", owner="me", session_id=7), "mean"))
    await submitted(engine, 1)
    assert service.abort_session("me", 7) == 1
    with pytest.raises(EngineUnavailable, match="was ended"):
        await task
