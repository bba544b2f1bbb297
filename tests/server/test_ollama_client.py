"""Ollama's official client against the running server."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from typing import Any

import ollama
import pytest
from ollama import AsyncClient, Client
from pydantic import BaseModel

from lmserve.bridge.inventions import HIDDEN_SIZE
from lmserve.messages import unpack_ids
from lmserve.server.lifecycle import Server
from lmserve.settings import Settings
from tests.server.sdk_types import strictly
from tests.server.speaking import CALL, THOUGHT, pieces, speaking

HI: list[Any] = [{"role": "user", "content": "hi"}]


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return speaking(settings)


@pytest.fixture
async def api(server: Server) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(host=server.url) as client:
        yield client


def get_weather(place: str) -> str:
    """What the weather is like.

    Args:
      place: A town.
    """
    return f"Rain in {place}."


async def test_chat(api: AsyncClient, fake: Any) -> None:
    fake.will_say("Hel", "lo").will_say("Hel", "lo")
    answer = strictly(await api.chat("mock", HI))
    assert (answer.message.role, answer.message.content) == ("assistant", "Hello")
    assert (answer.done, answer.done_reason, answer.eval_count) == (True, "stop", 6)
    assert answer.message.thinking is None and answer.message.tool_calls is None
    *said, last = [strictly(line) async for line in await api.chat("mock", HI, stream=True)]
    assert "".join(line.message.content or "" for line in said) == "Hello"
    assert (last.done, last.eval_count) == (True, 6)
    assert last.eval_duration and last.total_duration


async def test_the_same_without_asyncio(server: Server, fake: Any) -> None:
    def ask() -> str:
        with Client(host=server.url) as client:
            lines = client.generate("mock", "hi", stream=True)
            return "".join(line.response or "" for line in lines)

    fake.will_say("Hel", "lo")
    assert await asyncio.to_thread(ask) == "Hello"


async def test_it_thinks_and_calls(api: AsyncClient, fake: Any) -> None:
    said = f"{THOUGHT}I look.\n{CALL}\n{CALL}"
    fake.will_say(said).will_say(*pieces(said))
    asked: dict[str, Any] = {"tools": [get_weather], "think": True}
    whole = strictly(await api.chat("mock", HI, **asked))
    lines = [strictly(line) async for line in await api.chat("mock", HI, **asked, stream=True)]
    for messages in ([whole.message], [line.message for line in lines]):
        assert "".join(message.content or "" for message in messages) == "I look."
        assert "".join(message.thinking or "" for message in messages) == "Let me see."
        calls = [call for message in messages for call in message.tool_calls or ()]
        assert [(call.function.name, call.function.arguments) for call in calls] == [
            ("get_weather", {"place": "Paris"})
        ] * 2
    assert whole.done_reason == lines[-1].done_reason == "stop"

    # and once more, with what it said sent back
    fake.will_say("It rains.")
    result = {"role": "tool", "tool_name": "get_weather", "content": get_weather("Paris")}
    answer = await api.chat("mock", [*HI, whole.message, result], tools=[get_weather])
    assert answer.message.content == "It rains."
    prompt = bytes(id for id in unpack_ids(fake.submits[-1].token_ids) if id < 256).decode()
    assert "Rain in Paris." in prompt and "What the weather is like." in prompt


class Place(BaseModel):
    name: str
    people: int


async def test_an_answer_of_a_schema(api: AsyncClient, fake: Any) -> None:
    said = '{"name": "Paris", "people": 2}'
    fake.will_say(f"Hm.</think>{said}").will_say(f"Hm.</think>{said}")
    answer = await api.chat("mock", HI, format=Place.model_json_schema())
    assert Place.model_validate_json(answer.message.content or "") == Place(name="Paris", people=2)
    generated = await api.generate("mock", "hi", format="json")
    assert generated.response == said
    assert all(submit.sampling.grammar is not None for submit in fake.submits)


async def test_generate(api: AsyncClient, fake: Any) -> None:
    said = f"{THOUGHT}Hello"
    fake.will_say(said).will_say(*pieces(said))
    whole = strictly(await api.generate("mock", "hi", system="be brief", think="low"))
    lines = [strictly(line) async for line in await api.generate("mock", "hi", stream=True)]
    assert (whole.response, whole.thinking) == ("Hello", "Let me see.")
    assert "".join(line.response or "" for line in lines) == "Hello"
    assert "".join(line.thinking or "" for line in lines) == "Let me see."
    fake.will_say("Hello")
    raw = await api.generate("mock", "hi", raw=True, options={"num_predict": 2, "num_ctx": 99})
    assert (raw.response, raw.done_reason) == ("He", "length")
    assert (await api.generate("mock")).done_reason == "load"


async def test_log_probabilities(api: AsyncClient, fake: Any) -> None:
    for _ in range(3):
        fake.will_say("Hel", "lo")
    chat = strictly(await api.chat("mock", HI, logprobs=True, top_logprobs=2))
    generated = strictly(await api.generate("mock", "hi", logprobs=True))
    lines = [line async for line in await api.chat("mock", HI, logprobs=True, stream=True)]
    streamed = [one for line in lines for one in line.logprobs or ()]
    for logprobs in (chat.logprobs, generated.logprobs, streamed):
        assert "".join(one.token for one in logprobs or ()) == "Hello"
    assert {len(one.top_logprobs or ()) for one in chat.logprobs or ()} == {2}


async def test_vectors(api: AsyncClient) -> None:
    answer = strictly(await api.embed("mock", ["hi", "there"]))
    assert [len(vector) for vector in answer.embeddings] == [HIDDEN_SIZE] * 2
    assert all(math.hypot(*vector) == pytest.approx(1.0, abs=1e-5) for vector in answer.embeddings)
    assert answer.prompt_eval_count == 7
    short = await api.embed("mock", "hi", dimensions=3, truncate=True)
    assert len(short.embeddings[0]) == 3
    older = strictly(await api.embeddings("mock", "hi"))
    length = math.hypot(*older.embedding)
    assert [one / length for one in older.embedding] == pytest.approx(answer.embeddings[0])


async def test_what_is_served(api: AsyncClient, fake: Any) -> None:
    (model,) = (await api.list()).models
    assert model.model == "mock" and model.details is not None
    (loaded,) = (await api.ps()).models
    assert (loaded.name, loaded.digest) == ("mock", model.digest)
    assert loaded.context_length == fake.info.max_model_len
    shown = await api.show("mock:latest")
    assert shown.capabilities == ["completion", "embedding", "tools", "thinking"]
    assert shown.modelinfo is not None
    assert shown.modelinfo["mock.embedding_length"] == HIDDEN_SIZE


async def test_errors(api: AsyncClient, fake: Any) -> None:
    with pytest.raises(ollama.ResponseError, match="'other' is not served") as missing:
        await api.chat("other", HI)
    assert missing.value.status_code == 404
    with pytest.raises(ollama.ResponseError, match="images is not supported"):
        await api.chat("mock", [{**HI[0], "images": [b"x"]}])
    fake.will_fail("out of luck", "Hel")
    with pytest.raises(ollama.ResponseError, match="out of luck"):
        [line async for line in await api.chat("mock", HI, stream=True)]
