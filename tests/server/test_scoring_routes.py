"""POST /v1/score, /v1/rerank and /get_ppl over the application."""

from __future__ import annotations

import math
import threading
from typing import Any

import pytest
from aiohttp.test_utils import TestClient

from lmserve.bridge.inventions import logprob_of
from lmserve.messages import unpack_ids
from lmserve.protocol.inputs import MAX_INPUTS
from lmserve.text.tokenizer import Tokenizer

PAIRS = {"text_1": "Cats?", "text_2": ["Mice.", "Rome."]}
DOCUMENTS = {"query": "Cats?", "documents": ["Mice.", {"text": "Rome."}, "Milk."]}


def likelihood(text: str) -> float:
    return math.fsum(logprob_of(token_id, 0).logprob for token_id in text.encode())


async def post(client: TestClient, path: str, **fields: Any) -> tuple[int, Any]:
    response = await client.post(path, json=fields)
    return response.status, await response.json()


async def test_a_score_is_the_share_of_the_first_label(client: TestClient, fake: Any) -> None:
    status, body = await post(client, "/v1/score", **PAIRS)
    assert status == 200
    yes, no = likelihood("yes"), likelihood("no")
    assert [one["index"] for one in body["data"]] == [0, 1]
    for one in body["data"]:
        assert one["log_likelihoods"] == pytest.approx([yes, no])
        assert one["score"] == pytest.approx(math.exp(yes) / (math.exp(yes) + math.exp(no)))
    prompts = [
        bytes(id for id in unpack_ids(one.token_ids) if id < 256).decode() for one in fake.submits
    ]
    assert [prompt.partition("Document: ")[2][:5] for prompt in prompts] == [
        *("Mice.", "Mice.", "Rome.", "Rome.")
    ]
    assert all("Query: Cats?" in prompt for prompt in prompts)
    assert [one.sampling.max_tokens for one in fake.submits] == [0] * 4


async def test_labels_of_ones_own(client: TestClient) -> None:
    _, body = await post(client, "/v1/score", **PAIRS, labels=["no", "yes", "maybe"])
    expected = [likelihood("no"), likelihood("yes"), likelihood("maybe")]
    assert body["data"][0]["log_likelihoods"] == pytest.approx(expected)


async def test_labels_are_tokenised_off_the_loop(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[int] = []
    encode_further = Tokenizer.encode_further

    def watched(self: Tokenizer, text: str) -> list[int]:
        threads.append(threading.get_ident())
        return encode_further(self, text)

    monkeypatch.setattr(Tokenizer, "encode_further", watched)
    status, _ = await post(client, "/v1/score", **PAIRS)
    assert status == 200
    assert threads and threading.get_ident() not in threads


async def test_documents_in_order(client: TestClient) -> None:
    status, body = await post(client, "/v1/rerank", **DOCUMENTS, top_n=2)
    assert status == 200
    assert [one["index"] for one in body["results"]] == [0, 1]  # of equals, the earlier
    assert body["results"][1]["document"] == {"text": "Rome."}
    _, bare = await post(client, "/v1/rerank", **DOCUMENTS, return_documents=False)
    assert len(bare["results"]) == 3 and "document" not in bare["results"][0]


async def test_the_mean_loss_of_a_text(client: TestClient) -> None:
    status, body = await post(client, "/get_ppl", input="hello")
    assert (status, body["num_tokens"]) == (200, 4)
    assert body["ppl"] == pytest.approx(-likelihood("ello") / 4)
    assert await post(client, "/get_ppl", input=[*b"hello"]) == (status, body)


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        ("/v1/score", {"text_1": "a"}, "text_2"),
        ("/v1/score", {"text_1": ["a", "b"], "text_2": ["c"]}, "text_1"),
        ("/v1/score", {"text_1": "a", "text_2": []}, "text_2"),
        ("/v1/score", {**PAIRS, "labels": ["yes"]}, "labels"),
        ("/v1/score", {**PAIRS, "labels": ["yes", " "]}, "labels"),
        ("/v1/score", {**PAIRS, "labels": ["a"] * 17}, "labels"),
        ("/v1/score", {"text_1": "q" * 40_000, "text_2": ["a"] * 1000}, "text_2"),
        ("/v1/score", {**PAIRS, "text_2": ["a"] * (MAX_INPUTS + 1)}, "text_2"),
        ("/v1/rerank", {**DOCUMENTS, "documents": []}, "documents"),
        ("/v1/rerank", {"query": "q" * 40_000, "documents": ["a"] * 1000}, "documents"),
        ("/v1/rerank", {**DOCUMENTS, "top_n": 0}, "top_n"),
        ("/v1/rerank", {"query": "a", "documents": ["b" * 10_000]}, "documents[0]"),
        ("/get_ppl", {"input": "a"}, "input"),
        ("/get_ppl", {"input": ""}, "input"),
        ("/get_ppl", {"input": [1, -1]}, "input[1]"),
    ],
)
async def test_what_cannot_be(
    client: TestClient, path: str, fields: dict[str, Any], param: str
) -> None:
    status, body = await post(client, path, **fields)
    assert (status, body["error"]["param"]) == (400, param)
    assert (await client.get("/health")).status == 200
