"""What is bad input to a route is bad input in a line: the same status, the same field."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestClient

from lmserve.settings import SessionSettings, Settings
from tests.server.batching import CHAT, begin, line, results, until

MESSAGES = [{"role": "user", "content": "hi"}]
VALUES: tuple[Any, ...] = (0, -1, 2**31, 2**63, 1e308, "1", True, [], {})
NAMES = (
    "n", "top_logprobs", "logprobs", "prompt_logprobs", "stop", "bad_words", "logit_bias", "tools",
    "messages", "min_tokens", "max_tokens", "temperature", "top_p", "seed", "stop_token_ids",
    "allowed_token_ids", "response_format", "guided_regex", "guided_grammar", "guided_json",
    "chat_template", "chat_template_kwargs", "thinking_token_budget",
)  # fmt: skip
ODD: list[dict[str, Any]] = [
    {"min_tokens": 5, "max_tokens": 4},
    {"max_tokens": 10**9},
    {"messages": [{"role": "user", "content": "x" * 300_000}]},
    {"logit_bias": {"99999999": 1}},
    {"stop_token_ids": [2**31]},
    {"guided_regex": "(a*)*" * 1000},
    {"guided_regex": "(?<=a)b"},
    {"guided_regex": "(a"},
    {"guided_grammar": ""},
    {"guided_json": {"$ref": "http://example.com/a.json"}},
    {"guided_json": {"type": "nothing"}},
    {"guided_json": {"minimum": 2, "maximum": 1, "type": "integer"}},
    {"chat_template": "{% for i in range(10**9) %}{% endfor %}"},
]


@pytest.fixture
def settings(settings: Settings, tmp_path: Path) -> Settings:
    return replace(settings, sessions=SessionSettings(data_dir=str(tmp_path)))


async def test_lines_have_the_limits_of_their_route(client: TestClient) -> None:
    asked = [{name: value} for name in NAMES for value in VALUES] + ODD
    bodies = [{"messages": MESSAGES, "max_tokens": 2} | fields for fields in asked]
    lines = [line(str(number), body) for number, body in enumerate(bodies)]
    batch = await until(client, await begin(client, lines), "completed", "failed")
    assert batch["errors"] is None
    found = await results(client, batch["output_file_id"])
    found |= await results(client, batch["error_file_id"])
    assert len(found) == len(bodies)
    for number, body in enumerate(bodies):
        response = found[str(number)]["response"]
        direct = await client.post(CHAT, json=body)
        assert response["status_code"] == direct.status, asked[number]
        if direct.status != 200:
            assert direct.status == 400
            assert response["body"] == await direct.json()
    assert batch["request_counts"]["failed"] > 100
