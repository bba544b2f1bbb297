"""Calls of functions by real models: what must be a call is one, whatever the sampling."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from lmserve.cli.local import local_service
from lmserve.service.generate import Service
from lmserve.settings import EngineSettings, ServerSettings, Settings
from lmserve.types import (
    CallArguments,
    CallBegun,
    Content,
    GenerateRequest,
    Reasoning,
    Tool,
    ToolChoice,
)
from tests.e2e.conftest import TinyModel
from tests.e2e.test_default_model import default_model
from tests.text.families import ALL
from tests.whole import gather

WEATHER = Tool(
    "get_weather",
    "The weather of a place.",
    {
        "type": "object",
        "properties": {
            "place": {"type": "string", "maxLength": 20},
            "unit": {"enum": ["celsius", "kelvin"]},
            "days": {"type": "array", "items": {"type": "integer"}, "maxItems": 3},
        },
        "required": ["place", "unit"],
        "additionalProperties": False,
    },
)
TIME = Tool(
    "get_time",
    "The time somewhere.",
    {
        "type": "object",
        "properties": {"zone": {"type": "string", "maxLength": 9}},
        "required": ["zone"],
        "additionalProperties": False,
    },
)
TOOLS = (WEATHER, TIME)
ASKED = GenerateRequest(
    messages=[{"role": "user", "content": "What is the weather in Paris?"}],
    tools=TOOLS,
    splits=True,
    temperature=1.5,
    max_tokens=200,
)


async def called(service: Service, request: GenerateRequest) -> list[tuple[str, dict[str, Any]]]:
    whole = await gather(await service.generate(request))
    assert not any(isinstance(part, Content) for part in whole.parts), whole.text
    assert whole.done.finish_reason == "tool_calls"
    calls: list[tuple[str, str]] = []
    for part in whole.parts:
        if isinstance(part, CallBegun):
            calls.append((part.name, ""))
        elif isinstance(part, CallArguments):
            calls[-1] = (calls[-1][0], calls[-1][1] + part.text)
    return [(name, json.loads(arguments)) for name, arguments in calls]


def obeys(calls: list[tuple[str, dict[str, Any]]]) -> bool:
    schemas = {tool.name: tool.parameters for tool in TOOLS}
    for name, arguments in calls:
        jsonschema.validate(arguments, schemas[name])
    return bool(calls)


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.timeout(300)
async def test_calls_of_the_default_model_obey_their_schemas() -> None:
    engine = EngineSettings(model=str(default_model()), engine="thread", device="cpu")
    async with local_service(Settings(engine=engine)) as service:
        required = ToolChoice("required", parallel=False)
        named = ToolChoice("required", "get_time", parallel=False)
        choices = [required, named] * 10
        made = await asyncio.gather(
            *(
                called(service, replace(ASKED, tool_choice=choice, seed=seed))
                for seed, choice in enumerate(choices)
            )
        )
        assert all(len(calls) == 1 and obeys(calls) for calls in made)
        assert {calls[0][0] for calls in made[1::2]} == {"get_time"}

        none = replace(ASKED, temperature=0.0, max_tokens=8, tool_choice=ToolChoice("none"))
        whole = await gather(await service.generate(none))
        assert whole.parts == [] and whole.text


def shaped(path: Path, template: str, folder: Path) -> Settings:
    file = folder / "template.jinja"
    file.write_text(template)
    return Settings(
        engine=EngineSettings(
            model=str(path), engine="thread", device="cpu", session_len=512, num_blocks=256
        ),
        server=ServerSettings(chat_template=str(file), model_name="tiny"),
    )


SHORT = (Tool("f", None, {**TIME.parameters, "properties": {"zone": {"enum": ["x", "y"]}}}),)
BRIEF = replace(ASKED, tools=SHORT, max_tokens=250)


@pytest.mark.parametrize("family", ["qwen-2.5", "llama", "mistral"])
async def test_a_model_that_knows_nothing_calls_as_it_must(
    tiny_llama: TinyModel, tmp_path: Path, family: str
) -> None:
    template = ALL[family].replace("tojson(indent=4)", "tojson")  # it reads 512 tokens
    async with local_service(shaped(tiny_llama.path, template, tmp_path)) as service:
        choice = ToolChoice("required", parallel=False)
        [(name, arguments)] = await called(service, replace(BRIEF, tool_choice=choice))
        assert name == "f" and arguments["zone"] in ("x", "y")


async def test_it_thinks_first_and_then_calls(tiny_llama: TinyModel, tmp_path: Path) -> None:
    async with local_service(shaped(tiny_llama.path, ALL["qwen"], tmp_path)) as service:
        choice = ToolChoice("required", "f", parallel=False)
        request = replace(BRIEF, tool_choice=choice, thinking_budget=12, seed=3)
        whole = await gather(await service.generate(request))
        assert isinstance(whole.parts[0], Reasoning)
        assert not any(isinstance(part, Content) for part in whole.parts)
        assert whole.done.finish_reason == "tool_calls"
        assert whole.done.usage.reasoning_tokens >= 12

        unthinking = replace(request, chat_template_kwargs={"enable_thinking": False})
        whole = await gather(await service.generate(unthinking))
        assert isinstance(whole.parts[0], CallBegun)
