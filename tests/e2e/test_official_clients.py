"""The official clients and a real model: what it must say it says, whoever asks."""

from __future__ import annotations

import math
from typing import Any, Literal

import anthropic
import ollama
import openai
import pytest
from pydantic import BaseModel, Field

from tests.e2e.conftest import ServerProcess

pytestmark = [pytest.mark.slow, pytest.mark.network, pytest.mark.timeout(300)]

MODEL = "SmolLM2-135M-Instruct"
ASK: list[Any] = [{"role": "user", "content": "What is the weather in Paris?"}]


class Weather(BaseModel):
    """The weather of a place."""

    place: str = Field(max_length=20)
    unit: Literal["celsius", "kelvin"]


def test_anthropic(default_server: ServerProcess) -> None:
    tool: Any = {"name": "get_weather", "input_schema": Weather.model_json_schema()}
    with anthropic.Anthropic(base_url=default_server.url, api_key="none") as api:
        asked: dict[str, Any] = {"model": MODEL, "messages": ASK, "max_tokens": 200}
        choice: Any = {"type": "any", "disable_parallel_tool_use": True}
        with api.messages.stream(**asked, tools=[tool], tool_choice=choice) as stream:
            message = stream.get_final_message()
        (block,) = message.content
        assert (message.stop_reason, block.type) == ("tool_use", "tool_use")
        Weather.model_validate(block.input)
        result = {"type": "tool_result", "tool_use_id": block.id, "content": "Rain."}
        turn = [*ASK, {"role": "assistant", "content": message.content}]
        asked["messages"] = [*turn, {"role": "user", "content": [result]}]
        counted = api.messages.count_tokens(model=MODEL, messages=asked["messages"], tools=[tool])
        answer = api.messages.create(**asked | {"max_tokens": 8}, tools=[tool])
        usage = answer.usage
        assert counted.input_tokens == usage.input_tokens + (usage.cache_read_input_tokens or 0)
        parsed = api.messages.parse(**asked, output_format=Weather)
        assert isinstance(parsed.parsed_output, Weather)


def test_ollama(default_server: ServerProcess) -> None:
    with ollama.Client(host=default_server.url) as api:
        answer = api.chat(MODEL, ASK, format=Weather.model_json_schema(), logprobs=True)
        said = answer.message.content or ""
        Weather.model_validate_json(said)
        assert "".join(one.token for one in answer.logprobs or ()) == said
        assert answer.eval_duration and answer.prompt_eval_duration
        lines = [*api.generate(MODEL, "Hi", stream=True, options={"num_predict": 4})]
        assert (lines[-1].done_reason, lines[-1].eval_count) in (("length", 4), ("stop", 4))
        (vector,) = api.embed(MODEL, "Hi").embeddings
        assert math.hypot(*vector) == pytest.approx(1.0, abs=1e-4)
        shown = api.show(MODEL)
        assert shown.modelinfo and shown.modelinfo["llama.embedding_length"] == len(vector)


def test_openai(default_server: ServerProcess) -> None:
    url = f"{default_server.url}/v1"
    with openai.OpenAI(base_url=url, api_key="none") as api:
        answer = api.chat.completions.parse(
            model=MODEL, messages=ASK, response_format=Weather, n=3, temperature=1.2
        )
        assert all(isinstance(one.message.parsed, Weather) for one in answer.choices)
        tool = openai.pydantic_function_tool(Weather)
        with api.chat.completions.stream(
            model=MODEL, messages=ASK, tools=[tool], tool_choice="required"
        ) as stream:
            final = stream.get_final_completion()
        calls = final.choices[0].message.tool_calls or ()
        assert calls and all(isinstance(c.function.parsed_arguments, Weather) for c in calls)
        echoed = api.completions.create(
            model=MODEL, prompt="The capital of France is", echo=True, logprobs=1, max_tokens=1
        )
        rated = echoed.choices[0].logprobs
        assert rated is not None and rated.token_logprobs is not None
        assert "".join(rated.tokens or ()) == echoed.choices[0].text
        assert rated.token_logprobs[0] is None
        (vector,) = api.embeddings.create(model=MODEL, input="Hi").data
        assert math.hypot(*vector.embedding) == pytest.approx(1.0, abs=1e-4)
