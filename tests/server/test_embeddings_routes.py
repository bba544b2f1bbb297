"""POST /v1/embeddings over the application."""

from __future__ import annotations

import base64
import math
import struct
import threading
from typing import Any

import pytest
from aiohttp.test_utils import TestClient

from lmserve.bridge.inventions import HIDDEN_SIZE, embedding_of
from lmserve.protocol import embeddings
from lmserve.protocol.embeddings import vector_of
from lmserve.server.routes import ollama_embed
from lmserve.service.limits.told import MAX_INPUTS

PATH = "/v1/embeddings"


def pooled(text: str, pooling: str = "mean") -> list[float]:
    return list(struct.unpack(f"<{HIDDEN_SIZE}f", embedding_of([*text.encode()], pooling)))


def unit(vector: list[float]) -> list[float]:
    length = math.hypot(*vector)
    return [value / length for value in vector]


async def post(client: TestClient, **fields: Any) -> tuple[int, Any]:
    response = await client.post(PATH, json=fields)
    return response.status, await response.json()


async def test_texts_become_vectors_of_length_one(client: TestClient) -> None:
    status, body = await post(client, input=["hi", "there"], model="mock")
    assert (status, body["object"], body["model"]) == (200, "list", "mock")
    assert [one["index"] for one in body["data"]] == [0, 1]
    for one, text in zip(body["data"], ("hi", "there"), strict=True):
        assert one["embedding"] == pytest.approx(unit(pooled(text)), abs=1e-6)
    assert body["usage"] == {"prompt_tokens": 7, "total_tokens": 7}


async def test_one_text_and_token_ids_are_the_same(client: TestClient) -> None:
    _, text = await post(client, input="hi")
    _, ids = await post(client, input=[*b"hi"])
    _, lists = await post(client, input=[[*b"hi"]])
    assert text["data"] == ids["data"] == lists["data"]


async def test_the_state_itself_of_the_last_token_in_bytes_cut(client: TestClient) -> None:
    status, body = await post(
        client, input="hi", pooling="last", normalize=False, encoding_format="base64", dimensions=5
    )
    assert status == 200
    raw = base64.b64decode(body["data"][0]["embedding"])
    assert list(struct.unpack("<5f", raw)) == pytest.approx(pooled("hi", "last")[:5])


@pytest.mark.parametrize("path", [PATH, "/api/embed"])
async def test_vectors_of_many_are_written_off_the_loop(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    threads: list[int] = []

    def watched(*args: Any, **kwargs: Any) -> Any:
        threads.append(threading.get_ident())
        return vector_of(*args, **kwargs)

    monkeypatch.setattr(embeddings, "vector_of", watched)
    monkeypatch.setattr(ollama_embed, "vector_of", watched)
    response = await client.post(path, json={"input": ["a", "b"]})
    assert response.status == 200
    assert len(threads) == 2 and threading.get_ident() not in threads


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "input"),
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": ["a", ""]}, "input[1]"),
        ({"input": ["a", 1]}, "input"),
        ({"input": [[1], [2**31]]}, "input[1][0]"),
        ({"input": [-1]}, "input[0]"),
        ({"input": ["a"] * (MAX_INPUTS + 1)}, "input"),
        ({"input": "a", "dimensions": 0}, "dimensions"),
        ({"input": "a", "dimensions": HIDDEN_SIZE + 1}, "dimensions"),
        ({"input": "a", "dimensions": 1e308}, "dimensions"),
        ({"input": "a", "pooling": "max"}, "pooling"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format"),
        ({"input": "a" * 10_000}, "input"),
        ({"input": "a", "priority": 101}, "priority"),
    ],
)
async def test_what_cannot_be(client: TestClient, fields: dict[str, Any], param: str) -> None:
    status, body = await post(client, **fields)
    assert (status, body["error"]["param"]) == (400, param)
    assert (await client.get("/health")).status == 200
