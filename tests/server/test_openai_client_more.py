"""The official client against the running server: what an answer may have beside its text."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI
from pydantic import BaseModel

from lmserve.bridge.inventions import HIDDEN_SIZE
from lmserve.server.lifecycle import Server
from lmserve.settings import Settings
from tests.server.sdk_types import strictly
from tests.server.speaking import CALL, PARAMETERS, THOUGHT, pieces, speaking

HI: list[Any] = [{"role": "user", "content": "hi"}]
ASKED: dict[str, Any] = {"model": "mock", "messages": HI}
FUNCTION = {"name": "get_weather", "description": "Now.", "parameters": PARAMETERS}
WEATHER: Any = {"type": "function", "function": FUNCTION}


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return speaking(settings)


@pytest.fixture
async def api(server: Server) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


async def test_several_choices_with_log_probabilities(api: AsyncOpenAI, fake: Any) -> None:
    fake.will_say("Hel", "lo").will_say("Ho").will_say("Hel", "lo").will_say("Ho")
    asked = ASKED | {"n": 2, "logprobs": True, "top_logprobs": 2, "seed": 3}
    whole = strictly(await api.chat.completions.create(**asked))
    async with api.chat.completions.stream(**asked) as stream:
        events = [event.type async for event in stream]
        streamed = await stream.get_final_completion()
    assert {"content.delta", "content.done", "logprobs.content.delta"} <= set(events)
    for answer in (whole, streamed):
        assert [choice.message.content for choice in answer.choices] == ["Hello", "Ho"]
        for choice in answer.choices:
            assert choice.logprobs is not None and choice.logprobs.content is not None
            *said, end = choice.logprobs.content
            assert "".join(one.token for one in said) == choice.message.content
            assert end.token == "<|im_end|>" and len(end.top_logprobs) == 2
    assert {submit.sampling.seed for submit in fake.submits} == {3, 4}


async def test_calls(api: AsyncOpenAI, fake: Any) -> None:
    said = f"{THOUGHT}I look.\n{CALL}\n{CALL}"
    for _ in range(3):
        fake.will_say(*pieces(said))
    asked = ASKED | {"tools": [WEATHER]}
    whole = strictly(await api.chat.completions.create(**asked))
    chunks = await api.chat.completions.create(**asked, stream=True)
    async for chunk in chunks:
        strictly(chunk)
    async with api.chat.completions.stream(**asked) as stream:
        done = [event async for event in stream if event.type.endswith("arguments.done")]
        streamed = await stream.get_final_completion()
    assert len(done) == 2
    for answer in (whole, streamed):
        (choice,) = answer.choices
        assert (choice.finish_reason, choice.message.content) == ("tool_calls", "I look.")
        assert choice.message.reasoning_content == "Let me see."
        calls = [call.function for call in choice.message.tool_calls or ()]
        assert [(one.name, one.arguments) for one in calls] == [
            ("get_weather", '{"place": "Paris"}')
        ] * 2
    assert whole.usage is not None and whole.usage.completion_tokens_details is not None
    assert whole.usage.completion_tokens_details.reasoning_tokens


async def test_what_only_the_end_releases(api: AsyncOpenAI, fake: Any) -> None:
    """The end token comes by itself, as it does from a model."""
    for _ in range(2):
        fake.will_say("<think>", "hm", "m</thi", "")
    whole = (await api.chat.completions.create(**ASKED)).choices[0].message
    async with api.chat.completions.stream(**ASKED) as stream:
        streamed = (await stream.get_final_completion()).choices[0].message
    assert streamed.reasoning_content == whole.reasoning_content == "hmm</thi"


class Place(BaseModel):
    name: str
    people: int


class GetWeather(BaseModel):
    place: str


async def test_what_is_parsed(api: AsyncOpenAI, fake: Any) -> None:
    said = 'Hm.</think>{"name": "Paris", "people": 2}'
    fake.will_say(said).will_say(*pieces(said))
    paris = Place(name="Paris", people=2)
    answer = await api.chat.completions.parse(**ASKED, response_format=Place)
    assert answer.choices[0].message.parsed == paris
    async with api.chat.completions.stream(**ASKED, response_format=Place) as stream:
        assert (await stream.get_final_completion()).choices[0].message.parsed == paris
    assert all(submit.sampling.grammar is not None for submit in fake.submits)
    fake.will_say(f"Hm.</think>{CALL.replace('get_weather', 'GetWeather')}")
    tool = openai.pydantic_function_tool(GetWeather)
    answer = await api.chat.completions.parse(**ASKED, tools=[tool], tool_choice="required")
    (call,) = answer.choices[0].message.tool_calls or ()
    assert call.function.parsed_arguments == GetWeather(place="Paris")


async def test_completions_with_echo(api: AsyncOpenAI, fake: Any) -> None:
    fake.will_say("Hel", "lo").will_say("Hel", "lo").will_say("Hel", "lo")
    asked: dict[str, Any] = {"model": "mock", "prompt": "hi", "logprobs": 1}
    strictly(await api.completions.create(**asked))
    asked["echo"] = True  # with the first token's null, as OpenAI has it, which its types deny
    whole = await api.completions.create(**asked)
    (choice,) = whole.choices
    assert choice.text == "hiHello"
    assert choice.logprobs is not None and choice.logprobs.token_logprobs is not None
    assert choice.logprobs.tokens == [*"hiHello", "<|im_end|>"]
    assert choice.logprobs.text_offset == [0, 1, 2, 3, 4, 5, 6, 7]
    assert choice.logprobs.token_logprobs[0] is None
    assert all(one is not None and one < 0 for one in choice.logprobs.token_logprobs[1:])
    chunks = [chunk async for chunk in await api.completions.create(**asked, stream=True)]
    assert "".join(chunk.choices[0].text for chunk in chunks) == "hiHello"
    fake.will_say("a").will_say("b").will_say("c")
    best = await api.completions.create(model="mock", prompt="hi", n=1, best_of=3)
    assert len(best.choices) == 1


async def test_vectors(api: AsyncOpenAI) -> None:
    bytes_ = strictly(await api.embeddings.create(model="mock", input=["hi", "there"]))
    numbers = await api.embeddings.create(
        model="mock", input=["hi", "there"], encoding_format="float", dimensions=HIDDEN_SIZE
    )
    assert bytes_.usage.prompt_tokens == 7
    for one, other in zip(bytes_.data, numbers.data, strict=True):
        assert len(one.embedding) == HIDDEN_SIZE
        assert one.embedding == pytest.approx(other.embedding, abs=1e-7)
        assert math.hypot(*one.embedding) == pytest.approx(1.0, abs=1e-5)


async def test_errors_name_the_field(api: AsyncOpenAI) -> None:
    for fields, param in (
        ({"n": 129}, "n"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"tools": [{"type": "web"}]}, "tools[0].function"),
        ({"logit_bias": {"-1": 1}}, "logit_bias.-1"),
    ):
        with pytest.raises(openai.BadRequestError) as bad:
            await api.chat.completions.create(**ASKED, **fields)
        assert bad.value.param == param
    with pytest.raises(openai.BadRequestError) as bad:
        await api.embeddings.create(model="mock", input=["a", ""])
    assert bad.value.param == "input[1]"
