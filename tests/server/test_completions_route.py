"""POST /v1/completions over the application."""

from __future__ import annotations

import asyncio
import re
from contextlib import aclosing
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiohttp import ClientSession
from aiohttp.test_utils import TestClient

from lmserve.messages import unpack_ids
from lmserve.server.lifecycle import Server
from lmserve.server.routes.merge import merge

GOLDEN = Path(__file__).parent.parent / "golden"
URL = "/v1/completions"


def normalised(stream: bytes) -> bytes:
    stream = re.sub(rb'"id":"cmpl-[0-9a-f]{32}"', b'"id":"cmpl-0"', stream)
    return re.sub(rb'"created":\d{10}', b'"created":0', stream)


def chunks(stream: str) -> list[dict[str, Any]]:
    assert stream.endswith("data: [DONE]\n\n")
    return [orjson.loads(event[6:]) for event in stream.split("\n\n")[:-2]]


async def test_a_text(client: TestClient, fake: Any) -> None:
    fake.will_say("Hel", "lo")
    body = await (await client.post(URL, json={"model": "mock", "prompt": "hi"})).json()
    assert body["id"].startswith("cmpl-")
    assert body["object"] == "text_completion"
    assert body["choices"] == [
        {"index": 0, "text": "Hello", "logprobs": None, "finish_reason": "stop"}
    ]
    assert fake.submits[0].sampling.max_tokens == 16


async def test_token_ids(client: TestClient, fake: Any) -> None:
    await client.post(URL, json={"prompt": [104, 105], "max_tokens": 1})
    assert unpack_ids(fake.submits[0].token_ids) == [104, 105]


async def test_several_prompts_keep_their_order(client: TestClient, fake: Any) -> None:
    fake.will_say("a", "a", "a").will_say("b")
    body = await (await client.post(URL, json={"prompt": ["x", "yy"]})).json()
    assert [(c["index"], c["text"]) for c in body["choices"]] == [(0, "aaa"), (1, "b")]
    assert body["usage"]["prompt_tokens"] == 3


@pytest.mark.parametrize("include_usage", [False, True])
async def test_several_prompts_stream(client: TestClient, fake: Any, include_usage: bool) -> None:
    fake.will_say("a", "b", "c").will_say("d")
    request = {
        "prompt": ["x", "y"],
        "stream": True,
        "stream_options": {"include_usage": include_usage},
    }
    got = chunks(await (await client.post(URL, json=request)).text())
    usages = [chunk["usage"] for chunk in got if chunk.get("usage")]
    choices = [choice for chunk in got for choice in chunk["choices"]]
    for index, text in ((0, "abc"), (1, "d")):
        own = [choice for choice in choices if choice["index"] == index]
        assert "".join(choice["text"] for choice in own) == text
        assert [choice["finish_reason"] for choice in own][-1] == "stop"
        assert all(choice["finish_reason"] is None for choice in own[:-1])
    assert [usage["prompt_tokens"] for usage in usages] == ([2] if include_usage else [])


async def test_one_failing_prompt_ends_the_call(client: TestClient, fake: Any) -> None:
    fake.will_hang("a").will_fail("out of luck")
    response = await client.post(URL, json={"prompt": ["x", "y"], "stream": True})
    assert b"out of luck" in await response.read()
    assert len(fake.aborts) == 1


@pytest.mark.parametrize(
    ("prompt", "param"),
    [(["x", ""], "prompt[1]"), ([[1], [999_999]], "prompt[1][0]"), ("", "prompt")],
)
async def test_a_refused_prompt_runs_none(
    client: TestClient, fake: Any, prompt: Any, param: str
) -> None:
    response = await client.post(URL, json={"prompt": prompt})
    assert response.status == 400
    assert (await response.json())["error"]["param"] == param
    assert fake.submits == []


ONE_PROMPT = {
    "prompt": "hi",
    "stream": True,
    "max_tokens": 17,
    "stream_options": {"include_usage": True},
}


async def test_a_stream_of_one_prompt_to_the_byte(client: TestClient, fake: Any) -> None:
    fake.will_say(*"one step a letter", finish="length")
    response = await client.post(URL, json=ONE_PROMPT)
    assert response.headers["Content-Type"] == "text/event-stream; charset=utf-8"
    expected = await asyncio.to_thread((GOLDEN / "completion.sse").read_bytes)
    assert normalised(await response.read()) == expected


async def test_the_same_through_the_production_entry(server: Server, fake: Any) -> None:
    fake.will_say(*"one step a letter", finish="length")
    async with ClientSession(server.url) as session:
        response = await session.post(URL, json=ONE_PROMPT)
        stream = await response.read()
    expected = await asyncio.to_thread((GOLDEN / "completion.sse").read_bytes)
    assert normalised(stream) == expected


async def test_a_reader_that_lags_sees_all_of_one_prompt(client: TestClient, fake: Any) -> None:
    fake.will_say(*(["word "] * 3000))
    ask = {"prompt": "hi", "stream": True, "max_tokens": 8000}
    got = chunks(await (await client.post(URL, json=ask)).text())
    assert "".join(chunk["choices"][0]["text"] for chunk in got) == "word " * 1600


@pytest.mark.parametrize("num_streams", [1, 2])
async def test_merge_reads_nothing_ahead(num_streams: int) -> None:
    """While its reader does something else, nobody waits in a stream that was read."""
    asked: list[int] = []

    async def stream(index: int) -> Any:
        for _ in range(3):
            asked.append(index)
            yield index

    async with aclosing(merge([stream(index) for index in range(num_streams)])) as merged:
        await anext(merged)
        for _ in range(5):
            await asyncio.sleep(0)
        assert sorted(asked) == list(range(num_streams))


async def test_merge_leaves_no_task() -> None:
    async def count(last: int) -> Any:
        for i in range(last):
            yield i

    async def never() -> Any:
        await asyncio.Event().wait()
        yield

    before = asyncio.all_tasks()
    assert sorted([x async for x in merge([count(2), count(3)])]) == [
        (0, 0),
        (0, 1),
        (1, 0),
        (1, 1),
        (1, 2),
    ]
    merged = merge([never(), count(1)])
    assert await anext(merged) == (1, 0)
    await merged.aclose()
    assert asyncio.all_tasks() == before


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"suffix": "."}, "suffix"),
        ({"best_of": 2, "stream": True}, "best_of"),
        ({"best_of": 2, "n": 3}, "best_of"),
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"prompt": ["a"] * 20, "n": 20}, "n"),
        ({"logprobs": 21}, "logprobs"),
        ({"prompt_logprobs": -1}, "prompt_logprobs"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"logit_bias": {"a": 1}}, "logit_bias"),
        ({"return_logprob": True}, "return_logprob"),
    ],
)
async def test_what_is_refused(
    client: TestClient, fake: Any, fields: dict[str, Any], param: str
) -> None:
    response = await client.post(URL, json={"prompt": "hi"} | fields)
    assert response.status == 400
    assert (await response.json())["error"]["param"] == param
    assert fake.submits == []
