"""Values that the engine itself sees."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import aiohttp
import pytest

from tests.hardening.conftest import told
from tests.hardening.doors import USER

VOCAB = 450  # at most; all there are come with it
EOS = 257
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
EVERY_BYTE = [chr(code) for code in range(33, 127)]

# What is odd, and served.
SERVED: dict[str, dict[str, Any]] = {
    "a bias against 1024 tokens": {"logit_bias": {str(i): -100 for i in range(256)}},
    "a bias for tokens": {"logit_bias": {str(i): 100.0 for i in range(256)}},
    "one token": {"allowed_token_ids": [65], "ignore_eos": True},
    "one token, which ends": {"allowed_token_ids": [EOS]},
    "the same token often": {"allowed_token_ids": [65] * 1000},
    "every byte banned": {"bad_words": EVERY_BYTE},
    "a long ban": {"bad_words": ["a" * 256] * 128},
    "the next to nothing of top_p": {"top_p": 5e-324, "temperature": 2},
    "min_p 1": {"min_p": 1, "temperature": 2},
    "temperature next to nothing": {"temperature": 5e-324},
    "penalties": {"repetition_penalty": 0.01, "presence_penalty": -2, "frequency_penalty": -2},
    "more penalties": {"repetition_penalty": 2, "presence_penalty": 2, "frequency_penalty": 2},
    "the least seed": {"seed": -(2**63), "temperature": 1},
    "the greatest seed": {"seed": 2**63 - 1, "temperature": 1, "n": 4},
    "128 answers": {"n": 128, "max_tokens": 2, "temperature": 2},
    "the best of 128": {"best_of": 128, "n": 2, "max_tokens": 2, "temperature": 2},
    "all of the prompt's": {"prompt": "x" * 500, "prompt_logprobs": 20, "logprobs": 20},
    "nothing but the prompt": {"prompt": "x" * 512, "max_tokens": 0, "echo": True, "logprobs": 5},
    "many prompts": {"prompt": ["x"] * 200, "max_tokens": 1},
    "a regex of a million": {"guided_regex": "(a{999}){999}"},
    "a regex of nested stars": {"guided_regex": "((a*)*)*b"},
    "a grammar of nothing": {"guided_grammar": "start:"},
    "ten thousand choices": {"guided_choice": [f"choice {i}" for i in range(10_000)]},
    "an object cut at once": {"response_format": {"type": "json_object"}, "max_tokens": 1},
    "a self reference": {"guided_json": {"type": "array", "items": {"$ref": "#"}}},
    "a stop longer than the answer": {"stop": ["x" * 100_000]},
    "no end before the last": {"min_tokens": 8, "stop_token_ids": [*range(200)]},
}
# What leaves nothing to choose: refused, or ended; alone.
CONTRARY: dict[str, dict[str, Any]] = {
    "allowed is not what it matches": {"allowed_token_ids": [65], "guided_regex": "b+"},
    "banned is all it matches": {"bad_words": ["A"], "guided_choice": ["A"]},
    "bias against all it matches": {"logit_bias": {"65": -100}, "guided_choice": ["A"]},
    "only ends, and no end": {"allowed_token_ids": [EOS], "min_tokens": 4},
    "only stops, and no stop": {
        "allowed_token_ids": [65],
        "stop_token_ids": [65],
        "min_tokens": 4,
    },
    "an end that is allowed alone": {"allowed_token_ids": [EOS], "guided_regex": "a+"},
}


async def ask(client: aiohttp.ClientSession, fields: dict[str, Any]) -> tuple[int, bytes]:
    body = {"prompt": "Once", "max_tokens": 8, "temperature": 0} | fields
    async with client.post(COMPLETIONS, json=body) as response:
        return response.status, await response.read()


async def test_what_is_odd_is_served(client: aiohttp.ClientSession) -> None:
    answers = await asyncio.gather(*(ask(client, fields) for fields in SERVED.values()))
    for what, (status, answer) in zip(SERVED, answers, strict=True):
        assert status == 200, (what, answer[:300])
        choices = json.loads(answer)["choices"]
        assert all(choice["finish_reason"] in ("stop", "length") for choice in choices), what


async def test_what_leaves_nothing_to_choose_fails_alone(client: aiohttp.ClientSession) -> None:
    answers = await asyncio.gather(*(ask(client, fields) for fields in CONTRARY.values()))
    for what, (status, answer) in zip(CONTRARY, answers, strict=True):
        assert status in (200, 400), (what, answer[:300])
        if status == 400:
            told(answer)
    late = json.loads(answers[0][1])["error"]  # the grammar and the ids are each fine alone
    assert (late["code"], late["type"]) == ("unsatisfiable", "invalid_request_error")


BOMBS = (
    {"guided_regex": "(" * 30_000 + ")" * 30_000},
    {"guided_regex": "a{1000000}"},
    {"guided_grammar": "start: " + "(" * 30_000 + '"a"' + ")" * 30_000},
    {"guided_json": {"$ref": "http://localhost/"}},
    {"guided_json": {"enum": list(range(100_000))}},
    {"logit_bias": {str(VOCAB * 10): 1}},
    {"allowed_token_ids": [VOCAB * 10]},
    {"prompt": [VOCAB * 10]},
    {"n": 129},
    {"prompt_logprobs": 21},
)


async def test_what_is_refused_never_gets_there(client: aiohttp.ClientSession) -> None:
    answers = await asyncio.gather(*(ask(client, fields) for fields in BOMBS))
    for fields, (status, answer) in zip(BOMBS, answers, strict=True):
        assert status == 400, (next(iter(fields)), answer[:300])
        assert (told(answer)[1] or "").startswith(next(iter(fields)))


async def test_constraints_come_and_go_in_one_batch(client: aiohttp.ClientSession) -> None:
    """A hundred schemas that nobody has seen before, half of them left by their clients."""

    async def one(index: int) -> None:
        schema = {"type": "object", "properties": {f"p{index}": {"type": "string"}}}
        body = {"messages": [USER], "guided_json": schema, "max_tokens": 6, "stream": True}
        async with client.post(CHAT, json=body) as response:
            assert response.status == 200
            if index % 2:
                await response.read()
            else:
                await response.content.readany()
                response.close()

    await asyncio.gather(*map(one, range(60)))


NUM_SCHEMAS = 4000
AT_ONCE = 16


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_thousands_of_schemas_leave_nothing(client: aiohttp.ClientSession) -> None:
    """None of them seen before. What is kept of them is bounded, in the server and in the engine:
    test_advisories.py has the bounds, `real` looks at the memory."""

    async def some(first: int) -> None:
        for index in range(first, NUM_SCHEMAS, AT_ONCE):
            schema = {"type": "object", "properties": {f"unique{index}": {"enum": [index]}}}
            status, answer = await ask(client, {"guided_json": schema, "max_tokens": 1})
            assert status == 200, answer

    await asyncio.gather(*map(some, range(AT_ONCE)))
