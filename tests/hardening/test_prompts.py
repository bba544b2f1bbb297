"""Prompts at the limit and over it, bounds that contradict each other."""

from __future__ import annotations

from typing import Any

import aiohttp

from tests.hardening.conftest import told
from tests.hardening.doors import USER
from tests.hardening.real import SESSION_LEN

IDS = [
    ("/v1/completions", "prompt", {"max_tokens": 2}),
    ("/generate", "input_ids", {"max_tokens": 2}),
    ("/v1/chat/completions", "input_ids", {"messages": [], "max_tokens": 2}),
]


async def post(client: aiohttp.ClientSession, url: str, body: Any) -> tuple[int, Any]:
    async with client.post(url, json=body) as response:
        return response.status, await response.read()


async def test_at_the_limit_and_one_over_it(client: aiohttp.ClientSession) -> None:
    """An answer has at least one token, and `max_tokens` is cut to what fits."""
    for url, field, more in IDS:
        await _at_the_limit(client, url, field, more)


async def _at_the_limit(
    client: aiohttp.ClientSession, url: str, field: str, more: dict[str, Any]
) -> None:
    status, body = await post(client, url, {field: [65] * (SESSION_LEN - 1), **more})
    assert status == 200, body
    assert b'"completion_tokens":1' in body
    for num_tokens in (SESSION_LEN, SESSION_LEN + 1, 100 * SESSION_LEN):
        status, body = await post(client, url, {field: [65] * num_tokens, **more})
        assert status == 400
        message, param = told(body)
        assert param == field
        assert str(SESSION_LEN) in message


async def test_what_is_run_and_not_answered(client: aiohttp.ClientSession) -> None:
    for url in ("/v1/embeddings", "/get_ppl"):
        assert (await post(client, url, {"input": [65] * SESSION_LEN}))[0] == 200
        status, body = await post(client, url, {"input": [65] * (SESSION_LEN + 1)})
        assert (status, told(body)[1]) == (400, "input")


async def test_a_prompt_that_is_all_and_no_answer(client: aiohttp.ClientSession) -> None:
    body = {"prompt": [65] * SESSION_LEN, "max_tokens": 0, "echo": True, "logprobs": 20}
    status, answer = await post(client, "/v1/completions", body)
    assert status == 200, answer


CONTRADICTIONS = [
    ({"min_tokens": 3, "max_tokens": 2}, "min_tokens"),
    ({"min_tokens": SESSION_LEN, "max_tokens": SESSION_LEN}, "min_tokens"),
    ({"min_tokens": SESSION_LEN + 1, "max_tokens": SESSION_LEN}, "min_tokens"),
    ({"min_new_tokens": SESSION_LEN, "max_tokens": SESSION_LEN}, "min_new_tokens"),
    ({"min_tokens": 2**31, "max_tokens": 2**31}, "min_tokens"),
    ({"allowed_token_ids": [65], "bad_words": ["A"]}, "allowed_token_ids"),
    ({"allowed_token_ids": [257], "min_tokens": 1}, "allowed_token_ids"),
    ({"guided_regex": "a", "guided_choice": ["a"]}, "guided_choice"),
    ({"guided_regex": "a", "response_format": {"type": "json_object"}}, "guided_regex"),
]


GENERATING: tuple[tuple[str, dict[str, Any]], ...] = (
    ("/v1/chat/completions", {"messages": [USER], "max_tokens": SESSION_LEN}),
    ("/v1/completions", {"prompt": "hi", "max_tokens": SESSION_LEN}),
    ("/generate", {"prompt": "hi", "max_tokens": SESSION_LEN}),
    ("/v1/responses", {"input": "hi", "store": False}),
    ("/v1/sessions/hardened/turns", {"input": "hi"}),
)


async def test_bounds_that_contradict_each_other(client: aiohttp.ClientSession) -> None:
    for url, prompt in GENERATING:
        for fields, param in CONTRADICTIONS:
            status, body = await post(client, url, prompt | fields)
            assert status == 400, (url, fields, body)
            assert told(body)[1] == param, (url, fields, body)


HUGE = [{"n": 128, "best_of": 128}, {"n": 2}, {"n": 128}]


async def test_answers_of_many_prompts_are_counted_together(client: aiohttp.ClientSession) -> None:
    for fields in HUGE:
        status, body = await post(client, "/v1/completions", {"prompt": ["hi"] * 200, **fields})
        assert status == 400
        assert told(body)[1] in ("n", "best_of")


async def test_variables_of_templates_may_be_anything_else(client: aiohttp.ClientSession) -> None:
    values = ({"a": [[]] * 100}, {"enable_thinking": "x"}, {"": 1}, {"x y": None}, {"é\n": {}})
    for kwargs in values:
        for url in ("/v1/chat/completions", "/tokenize"):
            body = {"messages": [USER], "chat_template_kwargs": kwargs, "max_tokens": 1}
            status, answer = await post(client, url, body)
            assert status in (200, 400), answer
