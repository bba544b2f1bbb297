"""Anthropic's official client against the running server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import anthropic
import pytest
from anthropic import Anthropic, AsyncAnthropic
from anthropic.types import InputJSONDelta, ToolUseBlock
from pydantic import BaseModel, TypeAdapter

from lmserve.messages import unpack_ids
from lmserve.server.lifecycle import Server
from lmserve.settings import Settings
from tests.server.sdk_types import strictly
from tests.server.speaking import CALL, PARAMETERS, THOUGHT, pieces, speaking

HI: list[Any] = [{"role": "user", "content": "hi"}]
ASKED: dict[str, Any] = {"model": "mock", "messages": HI, "max_tokens": 1000}
WEATHER: Any = {"name": "get_weather", "description": "Now.", "input_schema": PARAMETERS}


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return speaking(settings)


@pytest.fixture
async def api(server: Server) -> AsyncIterator[AsyncAnthropic]:
    async with AsyncAnthropic(base_url=server.url, api_key="none", max_retries=0) as client:
        yield client


def prompt_of(fake: Any, index: int = -1) -> str:
    ids = unpack_ids(fake.submits[index].token_ids)
    return bytes(id for id in ids if id < 256).decode()


async def test_a_message(api: AsyncAnthropic, fake: Any) -> None:
    fake.will_say("Hel", "lo")
    message = strictly(await api.messages.create(**ASKED, system="be brief"))
    (block,) = message.content
    assert block.type == "text" and block.text == "Hello"
    assert (message.stop_reason, message.usage.output_tokens) == ("end_turn", 6)
    assert message._request_id


async def test_the_same_without_asyncio(server: Server, fake: Any) -> None:
    def ask() -> str:
        with Anthropic(base_url=server.url, api_key="none", max_retries=0) as client:
            with client.messages.stream(**ASKED) as stream:
                return stream.get_final_text()

    fake.will_say("Hel", "lo")
    assert await asyncio.to_thread(ask) == "Hello"


async def test_it_thinks_and_calls(api: AsyncAnthropic, fake: Any) -> None:
    said = f"{THOUGHT}I look.\n{CALL}\n{CALL}"
    fake.will_say(said).will_say(*pieces(said))
    fields: dict[str, Any] = {"tools": [WEATHER], "thinking": {"type": "adaptive"}}
    whole = strictly(await api.messages.create(**ASKED, **fields))
    async with api.messages.stream(**ASKED, **fields) as stream:
        events = [event async for event in stream]
        streamed = strictly(await stream.get_final_message())
    assert whole.stop_reason == streamed.stop_reason == "tool_use"
    for message in (whole, streamed):
        thought, text, *calls = message.content
        assert thought.type == "thinking" and thought.thinking == "Let me see."
        assert text.type == "text" and text.text == "I look."
        assert len({call.id for call in calls if call.type == "tool_use"}) == 2
        for call in calls:
            assert call.type == "tool_use"
            assert (call.name, call.input) == ("get_weather", {"place": "Paris"})
        assert message.usage.output_tokens_details is not None
        assert message.usage.output_tokens_details.thinking_tokens > 0
    kinds = {event.type for event in events}
    assert {"thinking", "signature", "text", "input_json"} <= kinds

    # and once more, with what it said sent back
    turn: list[Any] = [*HI, {"role": "assistant", "content": whole.content}]
    results = [
        {"type": "tool_result", "tool_use_id": block.id, "content": "Rain."}
        for block in whole.content
        if block.type == "tool_use"
    ]
    fake.will_say("It rains.")
    asked = ASKED | {"messages": [*turn, {"role": "user", "content": results}]}
    message = await api.messages.create(**asked, tools=[WEATHER])
    assert message.stop_reason == "end_turn"
    assert prompt_of(fake).count("Rain.") == 2
    assert "get_weather" in prompt_of(fake)


async def test_every_event_is_of_its_type(api: AsyncAnthropic, fake: Any) -> None:
    fake.will_say(*pieces(f"{THOUGHT}I look.\n{CALL}"))
    stream = await api.messages.create(**ASKED, tools=[WEATHER], stream=True)
    events = [strictly(event) async for event in stream]
    assert [event.type for event in events if event.type != "content_block_delta"] == [
        "message_start",
        *("content_block_start", "content_block_stop") * 3,
        "message_delta",
        "message_stop",
    ]
    assert [event.index for event in events if event.type == "content_block_start"] == [0, 1, 2]
    adapter: TypeAdapter[Any] = TypeAdapter(anthropic.types.RawMessageStreamEvent)
    for event in events:
        adapter.validate_python(event.model_dump(), strict=True)
    deltas = [event.delta for event in events if event.type == "content_block_delta"]
    written = "".join(one.partial_json for one in deltas if isinstance(one, InputJSONDelta))
    assert written == '{"place": "Paris"}'


async def test_what_it_thinks_may_be_hidden(api: AsyncAnthropic, fake: Any) -> None:
    thinking: Any = {"type": "enabled", "budget_tokens": 50, "display": "omitted"}
    for _ in range(2):
        fake.will_say(*pieces(f"{THOUGHT}Hello"))
    whole = await api.messages.create(**ASKED, thinking=thinking)
    async with api.messages.stream(**ASKED, thinking=thinking) as stream:
        streamed = await stream.get_final_message()
    for message in (whole, streamed):
        thought, text = message.content
        assert thought.type == "thinking" and (thought.thinking, text.type) == ("", "text")
    assert fake.submits[0].sampling.thinking.max_tokens == 50


async def test_a_call_is_forced(api: AsyncAnthropic, fake: Any) -> None:
    fake.will_say(f"Hm.\n</think>\n{CALL}")
    choice: Any = {"type": "tool", "name": "get_weather", "disable_parallel_tool_use": True}
    message = await api.messages.create(**ASKED, tools=[WEATHER], tool_choice=choice)
    assert [block.type for block in message.content] == ["thinking", "tool_use"]
    assert fake.submits[0].sampling.grammar is not None
    counted = await api.messages.count_tokens(
        model="mock", messages=HI, tools=[WEATHER], tool_choice=choice
    )
    assert counted.input_tokens == message.usage.input_tokens


class Place(BaseModel):
    name: str
    people: int


async def test_a_message_of_a_schema(api: AsyncAnthropic, fake: Any) -> None:
    said = '{"name": "Paris", "people": 2}'
    fake.will_say(f"Hm.</think>{said}").will_say(*pieces(f"Hm.</think>{said}"))
    paris = Place(name="Paris", people=2)
    message = await api.messages.parse(**ASKED, output_format=Place)
    assert message.parsed_output == paris
    async with api.messages.stream(**ASKED, output_format=Place) as stream:
        assert (await stream.get_final_message()).parsed_output == paris
    assert all(submit.sampling.grammar is not None for submit in fake.submits)


async def test_counting(api: AsyncAnthropic, fake: Any) -> None:
    counted = await api.messages.count_tokens(
        model="mock", messages=HI, system="be brief", tools=[WEATHER]
    )
    assert fake.submits == []
    message = await api.messages.create(**ASKED, system="be brief", tools=[WEATHER])
    assert strictly(counted).input_tokens == message.usage.input_tokens
    bare = await api.messages.count_tokens(model="mock", messages=HI)
    assert bare.input_tokens < counted.input_tokens


async def test_how_it_ends(api: AsyncAnthropic, fake: Any) -> None:
    fake.will_say("Hello").will_say("Hello")
    message = await api.messages.create(**ASKED, stop_sequences=["lo"])
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", "lo")
    message = await api.messages.create(**ASKED | {"max_tokens": 2})
    assert message.stop_reason == "max_tokens"


async def test_a_call_that_is_no_json_is_given_as_it_is(api: AsyncAnthropic, fake: Any) -> None:
    fake.will_say('<tool_call>{"name": "get_weather", "arguments": {"place": Paris}}</tool_call>')
    message = strictly(await api.messages.create(**ASKED, tools=[WEATHER]))
    (block,) = message.content
    assert isinstance(block, ToolUseBlock)
    assert block.input == {"INVALID_JSON": '{"place": Paris}'}


async def test_errors_map(api: AsyncAnthropic, fake: Any) -> None:
    with pytest.raises(anthropic.NotFoundError) as missing:
        await api.messages.create(**ASKED | {"model": "claude"})
    assert missing.value.type == "not_found_error"
    assert missing.value.request_id == missing.value.response.headers["X-Request-Id"]
    with pytest.raises(anthropic.BadRequestError, match=r"tools\[0\].input_schema"):
        broken = WEATHER | {"input_schema": {"type": "object", "not": {}}}
        await api.messages.create(**ASKED, tools=[broken], tool_choice={"type": "any"})
    fake.will_fail("out of luck")
    with pytest.raises(anthropic.InternalServerError, match="out of luck"):
        await api.messages.create(**ASKED)
    fake.will_fail("out of luck", "Hel")
    with pytest.raises(anthropic.APIStatusError, match="out of luck"):
        async with api.messages.stream(**ASKED) as stream:
            await stream.until_done()
    fake.die()
    with pytest.raises(anthropic.ServiceUnavailableError) as gone:
        await api.messages.create(**ASKED)
    assert gone.value.type == "overloaded_error"
