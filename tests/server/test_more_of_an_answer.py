"""Several answers, log probabilities, token ids and the rest, over the application; and the
official client's own types over all of it."""

from __future__ import annotations

import asyncio
import re
import threading
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiohttp.test_utils import TestClient
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from lmserve.messages import LEAST_LOGPROB, unpack_ids
from lmserve.protocol import logprobs

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
HELLO: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}
GOLDEN = Path(__file__).parent.parent / "golden"


async def whole(client: TestClient, url: str, body: dict[str, Any]) -> dict[str, Any]:
    """As the official client's types have it, which know nothing of the null that all servers
    send of a prompt's first token."""
    response = await client.post(url, json=body)
    text = await response.text()
    assert response.status == 200, text
    kind = ChatCompletion if url == CHAT else Completion
    if not (body.get("echo") and "logprobs" in body):
        kind.model_validate_json(text, strict=True)
    return dict(orjson.loads(text))


async def streamed(client: TestClient, url: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    response = await client.post(url, json=body | {"stream": True})
    text = await response.text()
    assert response.status == 200, text
    assert text.endswith("data: [DONE]\n\n")
    data = [event.removeprefix("data: ") for event in text.split("\n\n")[:-2]]
    for chunk in data:
        if url == CHAT:
            ChatCompletionChunk.model_validate_json(chunk, strict=True)
    return [orjson.loads(chunk) for chunk in data]


def choices_of(chunks: list[dict[str, Any]], index: int) -> list[dict[str, Any]]:
    return [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]


async def test_several_answers(client: TestClient, fake: Any) -> None:
    for text in ("one", "two", "three"):
        fake.will_say(*text)
    answer = await whole(client, CHAT, HELLO | {"n": 3})
    texts = [choice["message"]["content"] for choice in answer["choices"]]
    assert texts == ["one", "two", "three"]
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    prompt = unpack_ids(fake.submits[0].token_ids)
    assert answer["usage"]["prompt_tokens"] == len(prompt)
    assert answer["usage"]["completion_tokens"] == 3 + 3 + 5 + 3


async def test_several_answers_stream(client: TestClient, fake: Any) -> None:
    fake.will_say("a", "b", "c").will_say("d")
    options = {"stream_options": {"include_usage": True}}
    chunks = await streamed(client, CHAT, HELLO | {"n": 2} | options)
    for index, text in ((0, "abc"), (1, "d")):
        own = choices_of(chunks, index)
        assert [choice["delta"].get("role") for choice in own][:2] == ["assistant", None]
        assert "".join(choice["delta"].get("content", "") for choice in own) == text
        reasons = [choice["finish_reason"] for choice in own]
        assert reasons == [None] * (len(own) - 1) + ["stop"]
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == 6
    assert [chunk["usage"] for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)


async def test_prompts_times_answers(client: TestClient, fake: Any) -> None:
    for text in "abcd":
        fake.will_say(text)
    asked = {"prompt": ["x", "yy"], "n": 2}
    answer = await whole(client, COMPLETIONS, asked)
    told = [(choice["index"], choice["text"]) for choice in answer["choices"]]
    assert told == [(0, "a"), (1, "b"), (2, "c"), (3, "d")]
    assert answer["usage"]["prompt_tokens"] == 3
    options = {"stream_options": {"include_usage": True}}
    chunks = await streamed(client, COMPLETIONS, asked | options)
    assert sorted({choice["index"] for chunk in chunks for choice in chunk["choices"]}) == [
        0, 1, 2, 3
    ]  # fmt: skip
    assert chunks[-1]["usage"]["prompt_tokens"] == 3


async def test_the_best_of_several(client: TestClient, fake: Any) -> None:
    """The mock's tokens that are multiples of 7 are unlikely."""
    fake.will_say("b", "i").will_say("d").will_say("c")
    answer = await whole(client, COMPLETIONS, {"prompt": "x", "n": 2, "best_of": 3})
    assert [(c["index"], c["text"]) for c in answer["choices"]] == [(0, "d"), (1, "c")]
    assert [choice["logprobs"] for choice in answer["choices"]] == [None, None]
    assert answer["usage"]["completion_tokens"] == 3 + 2 + 2


async def test_logprobs_of_a_chat(client: TestClient, fake: Any) -> None:
    fake.will_say("Hi", "ü")
    answer = await whole(client, CHAT, HELLO | {"logprobs": True, "top_logprobs": 2})
    told = answer["choices"][0]["logprobs"]["content"]
    assert [each["bytes"] for each in told][:4] == [[72], [105], [0xC3], [0xBC]]
    assert len(told) == answer["usage"]["completion_tokens"] == 5  # the end token is one
    assert [len(each["top_logprobs"]) for each in told] == [2] * 5
    assert told[0]["logprob"] == -0.25 and told[1]["logprob"] == -9.75

    fake.will_say("Hi", "ü")
    chunks = await streamed(client, CHAT, HELLO | {"logprobs": True, "top_logprobs": 2})
    lists = [choice["logprobs"] for choice in choices_of(chunks, 0)]
    assert [each for one in lists if one is not None for each in one["content"]] == told


async def test_the_prompt_of_several_answers_is_told_once(client: TestClient, fake: Any) -> None:
    fake.will_say("one")
    fake.will_say("two")
    asked = HELLO | {"n": 2, "prompt_logprobs": 0, "return_token_ids": True}
    chunks = await streamed(client, CHAT, asked)
    for field in ("prompt_token_ids", "prompt_logprobs"):
        told = [chunk for chunk in chunks if chunk.get(field)]
        assert [chunk["choices"][0]["index"] for chunk in told] == [0]
        assert told[0]["choices"][0]["delta"]["role"] == "assistant"


@pytest.mark.parametrize(
    ("url", "body"),
    [
        (CHAT, HELLO | {"logprobs": True, "top_logprobs": 2}),
        (COMPLETIONS, {"prompt": "hi", "logprobs": 2}),
        ("/generate", {"prompt": "hi", "return_logprob": True, "top_logprobs_num": 2}),
    ],
)
async def test_logprobs_are_spelled_off_the_loop(
    client: TestClient, fake: Any, monkeypatch: pytest.MonkeyPatch, url: str, body: dict[str, Any]
) -> None:
    """Those of many tokens take seconds."""
    threads: list[int] = []

    def watched(value: float, least: float = LEAST_LOGPROB) -> float:
        threads.append(threading.get_ident())
        return max(value, least)

    monkeypatch.setattr(logprobs, "told", watched)
    fake.will_say(*"hello")
    response = await client.post(url, json=body)
    assert response.status == 200
    assert threads and threading.get_ident() not in threads


async def test_logprobs_without_alternatives(client: TestClient, fake: Any) -> None:
    fake.will_say("Hi")
    answer = await whole(client, CHAT, HELLO | {"logprobs": True})
    told = answer["choices"][0]["logprobs"]["content"]
    assert [each["top_logprobs"] for each in told] == [[]] * 3


async def test_logprobs_of_a_completion(client: TestClient, fake: Any) -> None:
    """As lm-eval reads them: the prompt's, then the answer's, the end token's too."""
    fake.will_say("c")
    asked = {"prompt": [97, 98], "echo": True, "logprobs": 1, "max_tokens": 1}
    answer = await whole(client, COMPLETIONS, asked)
    (choice,) = answer["choices"]
    assert choice["text"] == "abc"
    told = choice["logprobs"]
    assert told["tokens"] == ["a", "b", "c"]
    assert told["token_logprobs"] == [None, -9.75, -0.25]
    assert told["top_logprobs"] == [None, {"c": -0.25, "b": -9.75}, {"c": -0.25}]
    assert told["text_offset"] == [0, 1, 2]

    fake.will_say()
    answer = await whole(client, COMPLETIONS, asked)
    (choice,) = answer["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("ab", "stop")
    assert len(choice["logprobs"]["tokens"]) == 3


async def test_an_echo_alone(client: TestClient, fake: Any) -> None:
    asked = {"prompt": "abc", "echo": True, "logprobs": 0, "max_tokens": 0}
    answer = await whole(client, COMPLETIONS, asked)
    (choice,) = answer["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("abc", "length")
    assert choice["logprobs"]["token_logprobs"] == [None, -9.75, -0.25]
    assert answer["usage"]["completion_tokens"] == 0
    (chunk,) = await streamed(client, COMPLETIONS, asked)
    assert chunk["choices"] == [choice]


async def test_an_echo_streams_once(client: TestClient, fake: Any) -> None:
    fake.will_say("c", "d")
    chunks = await streamed(client, COMPLETIONS, {"prompt": "ab", "echo": True})
    assert [choice["text"] for choice in choices_of(chunks, 0)] == ["abc", "d", ""]


async def test_prompt_logprobs_and_token_ids(client: TestClient, fake: Any) -> None:
    asked = {"prompt": "ab", "prompt_logprobs": 1, "return_token_ids": True}
    fake.will_say("c")
    (choice,) = (await whole(client, COMPLETIONS, asked))["choices"]
    assert choice["prompt_token_ids"] == [97, 98]
    assert choice["token_ids"][:1] == [99] and len(choice["token_ids"]) == 2
    first, second = choice["prompt_logprobs"]
    assert first is None
    assert second["98"] == {"logprob": -9.75, "rank": None, "decoded_token": "b"}

    fake.will_say("c", "d")
    chunks = await streamed(client, COMPLETIONS, asked)
    told = choices_of(chunks, 0)
    assert [one["token_ids"][:1] for one in told[:2]] == [[99], [100]]
    assert ["prompt_token_ids" in one for one in told] == [True, False, False]

    fake.will_say("c")
    answer = await whole(client, CHAT, HELLO | {"return_token_ids": True, "prompt_logprobs": 0})
    assert answer["prompt_token_ids"] == unpack_ids(fake.submits[-1].token_ids)
    assert len(answer["prompt_logprobs"]) == answer["usage"]["prompt_tokens"]
    assert answer["choices"][0]["token_ids"][0] == 99


async def test_usage_in_every_chunk(client: TestClient, fake: Any) -> None:
    fake.will_say("a", "b")
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = await streamed(client, CHAT, HELLO | {"stream_options": options})
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts) and counts[-1] == 3


async def test_an_interval(client: TestClient, fake: Any) -> None:
    fake.will_say(*"abcdefg")
    chunks = await streamed(client, CHAT, HELLO | {"stream_interval": 3})
    texts = [choice["delta"].get("content") for choice in choices_of(chunks, 0)]
    assert texts == ["", "a", "bcd", "efg", None]


async def test_progress_and_timings(client: TestClient, fake: Any) -> None:
    fake.will_say("a")
    asked = {"prompt": "ab " * 100, "return_progress": True, "return_timings": True}
    chunks = await streamed(client, COMPLETIONS, asked)
    told = [chunk["prompt_progress"] for chunk in chunks if "prompt_progress" in chunk]
    assert [one["processed"] for one in told] == [256, 300]
    assert {(one["total"], one["cache"]) for one in told} == {(300, 0)}
    assert chunks[-1]["timings"]["prompt_n"] == 300
    assert chunks[-1]["timings"]["predicted_n"] == 2
    answer = await whole(client, CHAT, HELLO | {"return_timings": True})
    assert answer["timings"]["predicted_n"] == answer["usage"]["completion_tokens"]


async def test_a_stop_that_is_shown(client: TestClient, fake: Any) -> None:
    for shown, text in ((False, "a"), (True, "a.")):
        fake.will_say("a", ".", "b")
        asked = {"stop": ".", "include_stop_str_in_output": shown}
        answer = await whole(client, CHAT, HELLO | asked)
        assert answer["choices"][0]["message"]["content"] == text


async def test_what_reaches_the_engine(client: TestClient, fake: Any) -> None:
    fields = {"logit_bias": {"97": 5}, "allowed_token_ids": [97, 98]}
    await whole(client, CHAT, HELLO | fields)
    sampling = fake.submits[0].sampling
    assert sampling.logit_bias == ((97, 5.0),)
    assert sampling.allowed_token_ids == (97, 98)


@pytest.mark.parametrize("headers", [{"X-Resumable": "true"}, {"Idempotency-Key": "k"}])
async def test_the_same_kept(client: TestClient, fake: Any, headers: dict[str, str]) -> None:
    asked = HELLO | {"n": 2, "logprobs": True, "stream": True, "return_token_ids": True}

    async def stream(headers: dict[str, str]) -> bytes:
        fake.will_say("a", "b").will_say("c")
        data = await (await client.post(CHAT, json=asked, headers=headers)).read()
        data = re.sub(rb'"id":"chatcmpl-[0-9a-f]{32}"', b"", data)
        return re.sub(rb'id: \d+\n|"created":\d+', b"", data)

    plain, kept = await stream({}), await stream(headers)
    assert sorted(plain.split(b"\n\n")) == sorted(kept.split(b"\n\n"))


@pytest.mark.parametrize(
    ("url", "fields", "transcript"),
    [
        (CHAT, {"logprobs": True, "top_logprobs": 1}, "chat_logprobs.sse"),
        (CHAT, {"return_token_ids": True}, "chat_token_ids.sse"),
        (COMPLETIONS, {"prompt": "ab", "echo": True, "logprobs": 1}, "completion_echo.sse"),
    ],
)
async def test_a_stream_to_the_byte(
    client: TestClient, fake: Any, url: str, fields: dict[str, Any], transcript: str
) -> None:
    fake.will_say("Hi", "ü")
    body = {"stream": True} | fields | (HELLO if url == CHAT else {})
    data = await (await client.post(url, json=body)).read()
    data = re.sub(rb'"id":"(chatcmpl|cmpl)-[0-9a-f]{32}"', rb'"id":"\1-0"', data)
    data = re.sub(rb'"created":\d{10}', b'"created":0', data)
    assert data == await asyncio.to_thread((GOLDEN / transcript).read_bytes)
