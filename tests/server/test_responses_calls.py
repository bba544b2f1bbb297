"""Tools, forms and thoughts through /v1/responses, with the official client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import openai
import orjson
import pytest
from openai import AsyncOpenAI, OpenAI, pydantic_function_tool
from openai.lib.responses_websocket import ResponsesWebSocketAccumulator
from openai.types.responses import Response, ResponseItemList
from pydantic import BaseModel

from lmserve.server.lifecycle import Server, running_server
from lmserve.settings import SessionSettings, Settings
from tests.server.conftest import WatchedEngine
from tests.server.sdk_types import TYPES, strictly
from tests.server.sockets import connected

PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER: Any = {"type": "function", "name": "weather", "parameters": PARAMETERS, "strict": False}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'


@pytest.fixture
def settings(settings: Settings, tmp_path: Path) -> Settings:
    server = replace(settings.server, tool_call_parser="hermes", reasoning_parser="think")
    return replace(settings, server=server, sessions=SessionSettings(data_dir=str(tmp_path)))


@pytest.fixture
async def api(server: Server) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


async def test_a_call_and_its_output(api: AsyncOpenAI, fake: Any) -> None:
    fake.will_say("<think>Hm</think>Let me see. ", CALL).will_say("Sunny")
    raw = await api.responses.with_raw_response.create(
        input="Rome?", tools=[WEATHER], reasoning={"effort": "low"}, parallel_tool_calls=False
    )
    first = raw.parse()
    Response.model_validate_json(raw.content, strict=True)
    assert [item.type for item in first.output] == ["reasoning", "message", "function_call"]
    call: Any = first.output[2]
    assert (call.name, call.arguments, call.status) == ("weather", '{"city": "Rome"}', "completed")
    assert first.output_text == "Let me see." and first.status == "completed"
    assert first.usage is not None and first.usage.output_tokens_details.reasoning_tokens > 0
    assert [tool.type for tool in first.tools] == ["function"]
    assert first.parallel_tool_calls is False
    again = await api.responses.with_raw_response.retrieve(first.id)
    assert orjson.loads(again.content) == orjson.loads(raw.content)
    with pytest.raises(openai.BadRequestError, match="No tool output found") as refused:
        await api.responses.create(input="Well?", previous_response_id=first.id)
    assert refused.value.param == "input"
    output: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "sun"}
    second = await api.responses.create(
        input=[output], previous_response_id=first.id, tools=[WEATHER]
    )
    assert second.output_text == "Sunny"
    page = await api.responses.input_items.with_raw_response.list(second.id, order="asc")
    listed = ResponseItemList.model_validate_json(page.content, strict=True)
    assert [item.type for item in listed.data] == [
        "message", "reasoning", "message", "function_call", "function_call_output",
    ]  # fmt: skip
    ids = [item.id async for item in api.responses.input_items.list(second.id, limit=2)]
    assert ids == [item.id for item in reversed(listed.data)]


async def test_sent_back_it_is_the_same(api: AsyncOpenAI, fake: Any) -> None:
    fake.will_say("Let me see. ", CALL).will_say("Sunny").will_say("Sunny")
    question: Any = {"role": "user", "content": "Rome?"}
    first = await api.responses.create(input=[question], tools=[WEATHER])
    call: Any = first.output[1]
    output = {"type": "function_call_output", "call_id": call.call_id, "output": "sun"}
    said: list[Any] = [question, *[item.to_dict() for item in first.output], output]
    second = await api.responses.create(input=said, tools=[WEATHER], store=False)
    assert second.output_text == "Sunny"


class Weather(BaseModel):
    """The weather now."""

    city: str


class Answer(BaseModel):
    sky: str


async def test_the_stream_helper(api: AsyncOpenAI, fake: Any) -> None:
    fake.will_say("<think>H", "m</think>Wait", CALL[:40], CALL[40:])
    async with api.responses.stream(model="mock", input="Rome?", tools=[TOOL]) as stream:
        events = [event async for event in stream]
        final = await stream.get_final_response()
    kinds = [event.type for event in events]
    assert kinds.index("response.reasoning_text.done") < kinds.index("response.output_text.delta")
    deltas = [e.delta for e in events if e.type == "response.function_call_arguments.delta"]
    assert "".join(deltas) == '{"city": "Rome"}'
    call: Any = final.output[-1]
    assert call.type == "function_call"


SAID = "<think>Hm</think>Let me see. "
TOOL: Any = pydantic_function_tool(Weather, name="weather")
FUNCTION: Any = {"type": "function", **TOOL["function"]}


async def test_the_parse_helper_reads_a_call(api: AsyncOpenAI, fake: Any) -> None:
    fake.will_say(SAID, CALL).will_say("Hm</think>", '{"sky": "blue"}')
    first = await api.responses.parse(model="mock", input="Rome?", tools=[TOOL])
    call: Any = first.output[2]
    assert call.parsed_arguments == Weather(city="Rome")
    output: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "sun"}
    second = await api.responses.parse(
        model="mock", previous_response_id=first.id, input=[output], text_format=Answer
    )
    assert second.output_parsed == Answer(sky="blue")


async def test_over_the_socket(api: AsyncOpenAI, fake: Any) -> None:
    fake.will_say(SAID, CALL).will_say("Sunny")
    accumulator = ResponsesWebSocketAccumulator()
    async with api.responses.connect() as connection:
        await connection.response.create(model="mock", input="Rome?", tools=[FUNCTION])
        async for event in connection:
            accumulator.add_event(strictly(event))
            if event.type == "response.completed":
                break
        first = accumulator.get_final_response()
        call: Any = first.output[-1]
        assert [item.type for item in first.output] == ["reasoning", "message", "function_call"]
        accumulator.reset()
        output: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "sun"}
        await connection.response.create(
            model="mock", previous_response_id=first.id, input=[output]
        )
        async for event in connection:
            accumulator.add_event(strictly(event))
            if event.type == "response.completed":
                break
        assert accumulator.get_final_response().output_text == "Sunny"


def test_the_client_that_is_not_async(settings: Settings) -> None:
    asyncio.run(_with_threads(settings))


async def _with_threads(settings: Settings) -> None:
    fake = WatchedEngine(settings.engine)
    fake.will_say(SAID, CALL).will_say(SAID, CALL).will_say("Hm</think>", '{"sky": "blue"}')
    async with running_server(settings, fake) as server:
        await asyncio.to_thread(_converse, server.url)


def _converse(url: str) -> None:
    with OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as api:
        with api.responses.stream(model="mock", input="Rome?", tools=[TOOL]) as stream:
            kinds = {event.type for event in stream}
            final = stream.get_final_response()
        assert {"response.reasoning_text.delta", "response.output_text.delta"} < kinds
        assert "response.function_call_arguments.done" in kinds
        call: Any = final.output[-1]
        assert call.parsed_arguments == Weather(city="Rome")
        with api.responses.connect() as connection:
            connection.response.create(model="mock", input="Rome?", tools=[FUNCTION])
            events = []
            for event in connection:
                events.append(strictly(event))
                if event.type == "response.completed":
                    break
        assert "response.function_call_arguments.done" in {event.type for event in events}
        parsed = api.responses.parse(model="mock", input="Sky?", text_format=Answer)
        assert parsed.output_parsed == Answer(sky="blue")


async def test_a_form(api: AsyncOpenAI, fake: Any) -> None:
    fake.will_say("Hm</think>", '{"sky": "blue"}')
    parsed = await api.responses.parse(model="mock", input="Sky?", text_format=Answer)
    assert parsed.output_parsed == Answer(sky="blue")
    form: Any = parsed.text.format if parsed.text else None
    assert (form.type, form.name, form.schema_["type"]) == ("json_schema", "Answer", "object")


async def test_a_steer_waits_for_an_output(client: Any, fake: Any) -> None:
    fake.will_hang(CALL).will_say("Sunny")
    async with connected(client) as socket:
        await socket.send("response.create", input="Rome?", tools=[WEATHER])
        id = (await socket.until("response.created"))[-1]["response"]["id"]
        await socket.until("response.function_call_arguments.delta")
        await socket.send("response.steer", previous_response_id=id, input="Hurry")
        await socket.until("response.steer.accepted")
        await socket.send("session.update", response_id=id, max_output_tokens=1)
        told = await socket.until("response.steer.pending")
        for event in told:
            if event["type"] in TYPES:
                TYPES[event["type"]].model_validate_json(orjson.dumps(event), strict=True)
        assert told[-2]["response"]["output"][0]["status"] == "completed"
        [required] = told[-1]["required_input"]
        assert required["name"] == "weather"
        output = required | {"output": "sun"}
        await socket.send(
            "response.create", previous_response_id=id, input=[output], tools=[WEATHER]
        )
        told = await socket.until("response.completed")
        assert "session.steer.applied" in [event["type"] for event in told]
        assert told[-1]["response"]["output"][0]["content"][0]["text"] == "Sunny"
