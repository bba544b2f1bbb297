"""POST /tokenize, /detokenize and /v1/chat/completions/render over the application."""

from __future__ import annotations

from typing import Any

import jinja2
import msgspec
import pytest
from aiohttp.test_utils import TestClient

from lmserve.messages import unpack_ids
from lmserve.service import prepare

CHAT, RENDER = "/v1/chat/completions", "/v1/chat/completions/render"
HI = [{"role": "user", "content": "hi"}]
RENDERED = "<|im_start|>user\nhi<|im_end|>\n"
OPENED = RENDERED + "<|im_start|>assistant\n"


async def post(client: TestClient, path: str, **fields: Any) -> tuple[int, Any]:
    response = await client.post(path, json=fields)
    return response.status, await response.json()


async def test_a_text_in_tokens_and_back(client: TestClient, fake: Any) -> None:
    status, body = await post(client, "/tokenize", model="mock", prompt="hi ü<|im_end|>")
    ids = [*"hi ü".encode(), 257]
    max_model_len = fake.info.max_model_len
    assert (status, body) == (
        200,
        {"count": 6, "max_model_len": max_model_len, "tokens": ids, "token_strs": None},
    )
    assert await post(client, "/detokenize", tokens=ids) == (200, {"prompt": "hi ü<|im_end|>"})
    assert fake.submits == []


async def test_nothing_is_no_tokens(client: TestClient) -> None:
    assert (await post(client, "/tokenize", prompt=""))[1]["count"] == 0
    assert await post(client, "/detokenize", tokens=[]) == (200, {"prompt": ""})


async def test_tokens_as_the_vocabulary_spells_them(client: TestClient) -> None:
    _, body = await post(client, "/tokenize", prompt="a b<|im_end|>", return_token_strs=True)
    assert body["token_strs"] == ["a", "Ġ", "b", "<|im_end|>"]


async def test_a_conversation_is_what_chat_runs(client: TestClient, fake: Any) -> None:
    await client.post(CHAT, json={"messages": HI})
    ran = unpack_ids(fake.submits[0].token_ids)
    assert (await post(client, "/tokenize", messages=HI))[1]["tokens"] == ran
    status, body = await post(client, RENDER, model="mock", messages=HI, max_tokens=3)
    assert (status, body) == (
        200,
        {
            "model": "mock",
            "prompt": OPENED,
            "token_ids": ran,
            "count": len(ran),
            "max_model_len": fake.info.max_model_len,
        },
    )
    assert len(fake.submits) == 1
    _, body = await post(client, RENDER, messages=[], input_ids=ran)
    assert (body["prompt"], body["token_ids"]) == (OPENED, ran)


async def test_without_the_beginning_of_an_answer(client: TestClient) -> None:
    _, body = await post(client, "/tokenize", messages=HI, add_generation_prompt=False)
    assert await post(client, "/detokenize", tokens=body["tokens"]) == (200, {"prompt": RENDERED})


async def test_tools_are_told_as_chat_tells_them(client: TestClient, fake: Any) -> None:
    asked = {"messages": HI, "tools": [{"type": "function", "function": {"name": "look_up"}}]}
    await client.post(CHAT, json=asked | {"max_tokens": 1})
    ran = unpack_ids(fake.submits[0].token_ids)
    status, body = await post(client, "/tokenize", **asked)
    assert (status, body["tokens"]) == (200, ran)
    _, body = await post(client, RENDER, **asked)
    assert body["token_ids"] == ran and "look_up" in body["prompt"]
    status, body = await post(client, "/tokenize", messages=HI, tools=[{"function": {"name": ""}}])
    assert (status, body["error"]["param"]) == (400, "tools[0]")


@pytest.mark.parametrize("begins", [True, False])
async def test_an_answer_that_has_begun(client: TestClient, begins: bool) -> None:
    asked = {
        "messages": [*HI, {"role": "assistant", "content": "Hel"}],
        "continue_final_message": True,
        "add_generation_prompt": begins,
    }
    _, body = await post(client, RENDER, **asked)
    assert body["prompt"] == OPENED + "Hel"
    _, tokenized = await post(client, "/tokenize", **asked)
    assert tokenized["tokens"] == body["token_ids"]


async def test_special_tokens_around_it(client: TestClient, fake: Any) -> None:
    fake.info = msgspec.structs.replace(fake.info, bos_token="<|endoftext|>", add_bos=True)
    for fields, has_bos in (
        ({"prompt": "hi"}, True),
        ({"prompt": "hi", "add_special_tokens": False}, False),
        ({"messages": HI}, False),
        ({"messages": HI, "add_special_tokens": True}, True),
    ):
        _, body = await post(client, "/tokenize", **fields)
        assert (body["tokens"][0] == 258) is has_bos, fields


async def test_long_ones_are_worked_on_off_the_loop(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = await post(client, "/tokenize", prompt="long " * 20)
    text = await post(client, "/detokenize", tokens=short[1]["tokens"])
    monkeypatch.setattr(prepare, "MAX_LOOP_CHARS", 20)
    assert await post(client, "/tokenize", prompt="long " * 20) == short
    assert await post(client, "/detokenize", tokens=short[1]["tokens"]) == text
    assert text == (200, {"prompt": "long " * 20})


@pytest.mark.parametrize(
    ("path", "fields", "status", "param"),
    [
        ("/tokenize", {"prompt": "a", "model": "other"}, 404, "model"),
        ("/tokenize", {"messages": []}, 400, "messages"),
        ("/tokenize", {"prompt": "a" * 10_000}, 400, "prompt"),
        (
            "/tokenize",
            {"messages": HI, "chat_template_kwargs": {"tools": 1}},
            400,
            "chat_template_kwargs.tools",
        ),
        ("/detokenize", {"tokens": [1, -1]}, 400, "tokens[1]"),
        ("/detokenize", {"tokens": [10**6]}, 400, "tokens[0]"),
        ("/detokenize", {"tokens": [1] * 41}, 400, "tokens"),
        ("/detokenize", {"tokens": [1], "model": "other"}, 404, "model"),
        (RENDER, {"messages": []}, 400, "messages"),
        (RENDER, {"messages": HI, "model": "other"}, 404, "model"),
    ],
)
async def test_what_is_refused(
    client: TestClient, fake: Any, path: str, fields: dict[str, Any], status: int, param: str
) -> None:
    fake.info = msgspec.structs.replace(fake.info, max_model_len=40)
    got, body = await post(client, path, **fields)
    assert (got, body["error"]["param"]) == (status, param)


async def test_without_an_engine(client: TestClient, fake: Any) -> None:
    await fake.sleep()
    status, body = await post(client, "/tokenize", prompt="a")
    assert (status, body["error"]["code"]) == (503, "engine_unavailable")


async def test_what_a_client_needs_to_know_of_the_tokenizer(client: TestClient, fake: Any) -> None:
    response = await client.get("/tokenizer_info")
    info = await response.json()
    assert (response.status, info["bos_token"], info["eos_token"]) == (200, None, "<|im_end|>")
    assert info["model_max_length"] == fake.info.max_model_len
    template = jinja2.Environment().from_string(info["chat_template"])
    assert template.render(messages=HI, add_generation_prompt=True) == OPENED
