"""The official client against the running server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI

from lmserve.server.lifecycle import Server

HI: list[Any] = [{"role": "user", "content": "hi"}]


@pytest.fixture
async def api(server: Server) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


async def test_chat(api: AsyncOpenAI, fake: Any) -> None:
    fake.will_say("Hel", "lo")
    answer = await api.chat.completions.create(model="mock", messages=HI)
    assert answer.choices[0].message.content == "Hello"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 0


async def test_chat_stream(api: AsyncOpenAI, fake: Any) -> None:
    fake.will_say("Hel", "lo")
    stream = await api.chat.completions.create(
        model="mock", messages=HI, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == "Hello"
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert [c.usage for c in chunks[:-1]] == [None] * (len(chunks) - 1)


async def test_the_stream_helper(api: AsyncOpenAI, fake: Any) -> None:
    fake.will_say("Hel", "lo")
    async with api.chat.completions.stream(model="mock", messages=HI) as stream:
        answer = await stream.get_final_completion()
    assert answer.choices[0].message.content == "Hello"


async def test_completions(api: AsyncOpenAI, fake: Any) -> None:
    fake.will_say("a").will_say("b", "c")
    answer = await api.completions.create(model="mock", prompt="hi")
    assert answer.choices[0].text == "a"
    stream = await api.completions.create(model="mock", prompt="hi", stream=True)
    assert "".join([c.choices[0].text async for c in stream]) == "bc"


async def test_models(api: AsyncOpenAI) -> None:
    assert [model.id async for model in api.models.list()] == ["mock"]
    assert (await api.models.retrieve("mock")).id == "mock"


async def test_errors_map(api: AsyncOpenAI, fake: Any) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        await api.chat.completions.create(model="gpt", messages=HI)
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError, match="temperature") as bad:
        await api.chat.completions.create(model="mock", messages=HI, temperature=9)
    assert (bad.value.param, bad.value.type) == ("temperature", "invalid_request_error")
    fake.will_fail("out of luck")
    with pytest.raises(openai.InternalServerError, match="out of luck"):
        await api.chat.completions.create(model="mock", messages=HI)
    fake.will_fail("out of luck", "Hel")
    stream = await api.chat.completions.create(model="mock", messages=HI, stream=True)
    with pytest.raises(openai.APIError, match="out of luck"):
        [chunk async for chunk in stream]
    fake.die()
    with pytest.raises(openai.InternalServerError) as gone:
        await api.chat.completions.create(model="mock", messages=HI)
    assert gone.value.status_code == 503
