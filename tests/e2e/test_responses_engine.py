"""Responses of a real model that knows nothing: it thinks, calls and obeys as it must."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Literal

import pytest
from openai import AsyncOpenAI
from pydantic import BaseModel

from lmserve.server.lifecycle import running_server
from lmserve.settings import EngineSettings, ServerSettings, SessionSettings, Settings
from tests.e2e.conftest import TinyModel
from tests.text.families import ALL


class Sky(BaseModel):
    colour: Literal["blue", "grey"]
    clear: bool


@pytest.fixture
async def api(tiny_llama: TinyModel, tmp_path: Path) -> AsyncIterator[AsyncOpenAI]:
    template = tmp_path / "template.jinja"
    template.write_text(ALL["qwen"])
    settings = Settings(
        engine=EngineSettings(
            model=str(tiny_llama.path), engine="thread", device="cpu", threads=1,
            session_len=512, num_blocks=256,
        ),
        server=ServerSettings(server_port=0, model_name="tiny", chat_template=str(template)),
        sessions=SessionSettings(data_dir=str(tmp_path / "data")),
    )  # fmt: skip
    async with (
        running_server(settings) as server,
        AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client,
    ):
        await server.handle.wait_ready()
        yield client


async def test_it_thinks_and_then_obeys_the_form(api: AsyncOpenAI) -> None:
    budget: Any = {"max_tokens": 8}
    parsed = await api.responses.parse(
        model="tiny",
        input="How is the sky?",
        text_format=Sky,
        reasoning=budget,
        temperature=1.5,
        include=["message.output_text.logprobs"],
    )
    assert parsed.status == "completed"
    assert [item.type for item in parsed.output] == ["reasoning", "message"]
    assert isinstance(parsed.output_parsed, Sky)
    message: Any = parsed.output[1]
    assert Sky(**json.loads(message.content[0].text)) == parsed.output_parsed
    spelled = b"".join(bytes(each.bytes) for each in message.content[0].logprobs)
    assert spelled.decode().strip() == message.content[0].text.strip()
    assert parsed.usage is not None and parsed.usage.output_tokens_details.reasoning_tokens > 0
    again = await api.responses.retrieve(parsed.id)
    assert again.output_text == message.content[0].text
