"""What an answer has to be, over HTTP."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestClient

from tests.server.conftest import WatchedEngine

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
CHAT = {"model": "mock", "messages": [{"role": "user", "content": "x"}]}
TEXT = {"model": "mock", "prompt": "x"}
ROUTES = [("/v1/chat/completions", CHAT), ("/v1/completions", TEXT)]


@pytest.mark.parametrize(("route", "body"), ROUTES)
async def test_the_engine_gets_the_grammar(
    client: TestClient, fake: WatchedEngine, route: str, body: dict[str, Any]
) -> None:
    fake.will_say('{"a": 1}')
    response = await client.post(route, json={**body, "guided_json": SCHEMA, "stop": [":"]})
    assert response.status == 200
    choice = (await response.json())["choices"][0]
    said = choice["message"]["content"] if "message" in choice else choice["text"]
    assert said == '{"a": 1}'  # whole: its grammar says where it ends


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"guided_regex": "a{1000000}"}, "guided_regex"),
    ({"guided_grammar": "start: " + "(" * 30000}, "guided_grammar"),
    ({"structured_outputs": {"json": {"not": {}}}}, "structured_outputs.json"),
    ({"guided_choice": []}, "guided_choice"),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "x"}}}},
        "response_format.json_schema.schema",
    ),
]


async def test_what_cannot_be_is_a_400_that_names_the_field(client: TestClient) -> None:
    for route, body in ROUTES:
        for stream in (False, True):
            for fields, param in REFUSED:
                response = await client.post(route, json={**body, **fields, "stream": stream})
                assert response.status == 400
                error = (await response.json())["error"]
                assert error["param"] == param
                assert error["message"].startswith(param)


DOCS = Path(__file__).parents[2] / "docs" / "structured.md"
EXAMPLE = re.compile(r"curl localhost:23333(\S+) .*?-d '(.*?)'\n```", re.DOTALL)


async def test_the_examples_of_the_documentation_are_served(
    client: TestClient, fake: WatchedEngine
) -> None:
    examples = EXAMPLE.findall(DOCS.read_text())
    assert len(examples) == 5
    for route, body in examples:
        response = await client.post(route, json=json.loads(body) | {"model": "mock"})
        assert response.status == 200, await response.text()
