"""Over a real engine: several answers to one prompt, embeddings and likelihoods."""

from __future__ import annotations

import asyncio
import math
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import torch

from lmserve.bridge.select import make_handle
from lmserve.service.generate import Service, best
from lmserve.service.metrics import Metrics
from lmserve.settings import EngineSettings, Settings
from lmserve.types import GenerateRequest
from tests.e2e.conftest import TinyModel
from tests.whole import gather

PROMPT = [*b"Once upon a time there was a server of models. "] * 2
LABELS = [" yes", " no", "maybe so"]


@asynccontextmanager
async def serving(model: TinyModel, **settings: Any) -> AsyncIterator[Service]:
    engine = EngineSettings(
        model=str(model.path), engine="thread", dtype="float32", threads=1, device="cpu",
        stuck_after_s=30.0, **settings,
    )  # fmt: skip
    whole = Settings(engine=engine)
    handle = make_handle(engine)
    service = Service(handle, whole, Metrics(handle, whole))
    await handle.start()
    try:
        await asyncio.wait_for(handle.wait_ready(), 50)
        yield service
    finally:
        service.close()
        await handle.close()


def ask(**fields: Any) -> GenerateRequest:
    given = {"token_ids": PROMPT, "max_tokens": 8, "ignore_eos": True, "temperature": 1.2}
    return GenerateRequest(**given | fields)


def logprobs(model: TinyModel, token_ids: list[int]) -> list[float]:
    """Of each token but the first, by transformers."""
    with torch.no_grad():
        logits = model.module(torch.tensor([token_ids])).logits[0]
    rows = torch.log_softmax(logits.float(), -1)
    return [rows[i - 1, token_ids[i]].item() for i in range(1, len(token_ids))]


async def test_n_answers_equal_as_many_calls(tiny_llama: TinyModel) -> None:
    async with serving(tiny_llama) as service:
        generations = await service.generate_all([ask(n=4, seed=3)])
        together = await asyncio.gather(*map(gather, generations))
        alone = [await gather(await service.generate(ask(seed=3 + i))) for i in range(4)]
        assert [whole.token_ids for whole in together] == [whole.token_ids for whole in alone]
        assert len({tuple(whole.token_ids) for whole in together}) == 4
        # it is the same again, whichever ends first
        again = await service.generate_all([ask(n=2, seed=3)])
        with again[0].lease():
            pass  # its reader leaves
        assert (await gather(again[1])).token_ids == together[1].token_ids


async def test_the_best_of_many_is_the_likeliest(tiny_llama: TinyModel) -> None:
    async with serving(tiny_llama) as service:
        generations = await service.generate_all([ask(best_of=5, seed=3)])
        wholes = await asyncio.gather(*map(gather, generations))
        means = []
        for whole in wholes:
            found = logprobs(tiny_llama, PROMPT + whole.token_ids)[len(PROMPT) - 1 :]
            means.append(sum(found) / len(found))
        (chosen,) = best(generations, 1)
        assert generations.index(chosen) == means.index(max(means))
        assert chosen.mean_logprob == pytest.approx(max(means), abs=1e-3)


async def test_labels_and_perplexity_as_transformers_rates_them(tiny_llama: TinyModel) -> None:
    async with serving(tiny_llama) as service:
        prompts = [PROMPT, PROMPT[:20]]
        asked = [GenerateRequest(token_ids=ids) for ids in prompts]
        scores = await service.score(asked, LABELS)
        tokenizer = (await service.model_text()).tokenizer
        for ids, row in zip(prompts, scores, strict=True):
            for label, found in zip(LABELS, row, strict=True):
                whole = ids + tokenizer.encode_further(label)
                expected = logprobs(tiny_llama, whole)[len(ids) - 1 :]
                assert found.logprob == pytest.approx(math.fsum(expected), abs=1e-3)
                assert found.num_tokens == len(expected)
        for ids, found in zip(prompts, await service.perplexity(asked), strict=True):
            expected = logprobs(tiny_llama, ids)
            assert found.logprob == pytest.approx(math.fsum(expected), abs=1e-3)
            assert found.num_tokens == len(ids) - 1


async def test_embeddings_as_transformers_pools_them(tiny_llama: TinyModel) -> None:
    async with serving(tiny_llama) as service:
        prompts = [PROMPT[: 10 + 7 * i] for i in range(5)]
        for pooling in ("mean", "last"):
            asked = [GenerateRequest(token_ids=ids) for ids in prompts]
            found = await service.embed(asked, pooling)
            for ids, embedding in zip(prompts, found, strict=True):
                with torch.no_grad():
                    state = tiny_llama.module.model(torch.tensor([ids])).last_hidden_state[0]
                expected = (state.mean(0) if pooling == "mean" else state[-1]).tolist()
                vector = struct.unpack(f"<{len(expected)}f", embedding.vector)
                assert vector == pytest.approx(expected, abs=1e-4)
