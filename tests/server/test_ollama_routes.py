"""Ollama's routes over the application."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest
from aiohttp.test_utils import TestClient

from lmserve.messages import unpack_ids

CHAT, GENERATE = "/api/chat", "/api/generate"
HI = [{"role": "user", "content": "hi"}]


async def post(client: TestClient, path: str, **fields: Any) -> tuple[int, Any]:
    response = await client.post(path, json={"stream": False} | fields)
    assert response.content_type == "application/json"
    return response.status, await response.json()


async def lines(client: TestClient, path: str, **fields: Any) -> list[dict[str, Any]]:
    response = await client.post(path, json=fields)
    assert (response.status, response.content_type) == (200, "application/x-ndjson")
    *sent, end = (await response.read()).split(b"\n")
    assert end == b""
    return [orjson.loads(line) for line in sent]


def counts(line: dict[str, Any]) -> tuple[int, int]:
    durations = [line[f"{name}_duration"] for name in ("prompt_eval", "eval", "load")]
    assert line["total_duration"] >= sum(durations) > 0 and min(durations) >= 0
    return line["prompt_eval_count"], line["eval_count"]


async def test_a_streamed_conversation(client: TestClient, fake: Any) -> None:
    fake.will_say("Hel", "lo", finish="length")
    *said, last = await lines(client, CHAT, model="mock:latest", messages=HI)
    assert "".join(line["message"]["content"] for line in said) == "Hello"
    assert {(line["model"], line["message"]["role"], line["done"]) for line in said} == {
        ("mock", "assistant", False)
    }
    assert (last["done"], last["done_reason"], last["message"]["content"]) == (True, "length", "")
    assert counts(last) == (len(fake.submits[0].token_ids) // 4, 5)


async def test_a_whole_answer_is_what_chat_runs(client: TestClient, fake: Any) -> None:
    fake.will_say("Hello")
    await client.post("/v1/chat/completions", json={"messages": HI})
    fake.will_say("Hello")
    status, body = await post(client, CHAT, model="mock", messages=HI)
    assert (status, body["done"], body["done_reason"]) == (200, True, "stop")
    assert body["message"] == {"role": "assistant", "content": "Hello"}
    assert counts(body)[1] == 6  # with the end token
    assert fake.submits[0].token_ids == fake.submits[1].token_ids


async def test_a_prompt(client: TestClient, fake: Any) -> None:
    fake.will_say("Hel", "lo")
    *said, last = await lines(client, GENERATE, model="mock", prompt="hi", system="s")
    assert "".join(line["response"] for line in said) == "Hello"
    assert (last["response"], last["done"], last["done_reason"]) == ("", True, "stop")
    assert "context" not in last
    ran = bytes(id for id in unpack_ids(fake.submits[0].token_ids) if id < 256)
    assert ran == b"system\ns\nuser\nhi\nassistant\n"
    fake.will_say("ho")
    _, body = await post(client, GENERATE, model="mock", prompt="hi", raw=True)
    assert body["response"] == "ho"
    assert unpack_ids(fake.submits[1].token_ids) == [*b"hi"]


async def test_options(client: TestClient, fake: Any) -> None:
    options = {"num_predict": 9, "temperature": 0.5, "seed": 3, "stop": ["l"], "num_ctx": 5}
    fake.will_say("Hello")
    _, body = await post(client, CHAT, messages=HI, options=options, keep_alive=-1)
    assert (body["message"]["content"], body["done_reason"]) == ("He", "stop")
    sampling = fake.submits[0].sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.seed) == (9, 0.5, 3)


@pytest.mark.parametrize(("path", "key"), [(CHAT, "message"), (GENERATE, "response")])
async def test_nothing_asked_is_a_model_that_is_there(
    client: TestClient, fake: Any, path: str, key: str
) -> None:
    (line,) = await lines(client, path, model="mock", keep_alive=0)
    assert (line["done"], line["done_reason"]) == (True, "load")
    assert key in line
    status, body = await post(client, path, model="mock")
    assert (status, body["done_reason"]) == (200, "load")
    assert (await post(client, path, model="other"))[0] == 404
    assert fake.submits == []


async def test_a_stream_that_fails_says_so(client: TestClient, fake: Any) -> None:
    fake.will_fail("out of luck", "Hel")
    *said, last = await lines(client, CHAT, messages=HI)
    assert "".join(line["message"]["content"] for line in said) == "Hel"
    assert last == {"error": "out of luck"}
    fake.will_fail("out of luck")
    assert await post(client, CHAT, messages=HI) == (500, {"error": "out of luck"})


async def test_who_leaves_ends_the_answer(client: TestClient, fake: Any) -> None:
    fake.hang()
    asked = asyncio.create_task(client.post(CHAT, json={"messages": HI}))
    await asyncio.wait_for(fake.submitted.wait(), 10)
    asked.cancel()
    await asyncio.wait_for(fake.aborted.wait(), 10)


@pytest.mark.parametrize(
    ("path", "fields", "status", "says"),
    [
        (CHAT, {"messages": HI, "model": "other"}, 404, "'other' is not served"),
        (CHAT, {"messages": HI, "format": "xml"}, 400, "format is 'xml'"),
        (CHAT, {"messages": HI, "format": {"type": "x"}}, 400, "format"),
        (CHAT, {"messages": HI, "tools": [{}]}, 400, "tools[0].function is required"),
        (CHAT, {"messages": HI, "tools": [{"function": {"name": ""}}]}, 400, "tools[0]"),
        (CHAT, {"messages": HI, "logprobs": True, "top_logprobs": 21}, 400, "top_logprobs is 21"),
        (CHAT, {"messages": "hi"}, 400, "messages must be an array"),
        (CHAT, {"messages": HI, "options": {"num_predict": 0}}, 400, "options.num_predict is 0"),
        (CHAT, {"messages": HI, "options": {"repeat_penalty": 9}}, 400, "options.repeat_penalty"),
        (CHAT, {"messages": HI, "options": {"temperature": -1}}, 400, "options.temperature is -1"),
        (CHAT, {"messages": HI, "options": {"top_k": -5}}, 400, "options.top_k is -5"),
        (CHAT, {"messages": HI, "options": {"stop": [""]}}, 400, "options.stop[0]"),
        (GENERATE, {"prompt": "a", "options": {"seed": 2**63}}, 400, "seed"),
        (GENERATE, {"prompt": "a", "suffix": "b"}, 400, "suffix is not supported"),
        (GENERATE, {"prompt": "a" * 10**6}, 400, "context length"),
        ("/api/show", {}, 400, "model is required"),
        ("/api/show", {"model": "other"}, 404, "'other' is not served"),
        ("/api/embed", {}, 400, "input is required"),
        ("/api/embed", {"input": []}, 400, "input is empty"),
        ("/api/embed", {"input": ["a", ""]}, 400, "input[1] is empty"),
        ("/api/embed", {"input": "a" * 10_000, "truncate": True}, 400, "context length"),
        ("/api/embed", {"input": "a", "model": "other"}, 404, "'other' is not served"),
        ("/api/embeddings", {"input": "a"}, 400, "prompt is required"),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
async def test_what_is_refused(
    client: TestClient,
    fake: Any,
    path: str,
    fields: dict[str, Any],
    status: int,
    says: str,
    stream: bool,
) -> None:
    got, body = await post(client, path, stream=stream, **fields)
    assert (got, list(body)) == (status, ["error"])
    assert says in body["error"]
    assert fake.submits == []


async def test_more_dimensions_than_there_are(client: TestClient) -> None:
    status, body = await post(client, "/api/embed", input="a", dimensions=10**6)
    assert (status, list(body)) == (400, ["error"]) and "dimensions" in body["error"]


async def test_errors_of_the_path_itself(client: TestClient, fake: Any) -> None:
    response = await client.post(CHAT, data=b"{")
    assert response.status == 400 and "not valid JSON" in (await response.json())["error"]
    response = await client.get(CHAT)
    assert response.status == 405 and "use POST" in (await response.json())["error"]
    await fake.sleep()
    for asked in (
        client.get("/api/tags"),
        client.get("/api/ps"),
        client.post(CHAT, json={"messages": HI}),
    ):
        response = await asked
        assert response.status == 503 and isinstance((await response.json())["error"], str)


async def test_what_is_served(client: TestClient, fake: Any) -> None:
    (model,) = (await (await client.get("/api/tags")).json())["models"]
    assert (model["name"], model["model"]) == ("mock", "mock")
    for name in ("mock", "mock:latest"):
        status, shown = await post(client, "/api/show", model=name)
        assert status == 200
        assert shown["details"] == model["details"]
        assert shown["model_info"]["mock.context_length"] == fake.info.max_model_len
        assert shown["capabilities"] == ["completion", "embedding", "tools"]
        assert "message['role']" in shown["template"]
    (loaded,) = (await (await client.get("/api/ps")).json())["models"]
    assert loaded["digest"] == model["digest"]
    assert loaded["context_length"] == fake.info.max_model_len
    version = await (await client.get("/api/version")).json()
    assert list(version) == ["version"]


async def test_the_document_has_the_lines(client: TestClient) -> None:
    document = await (await client.get("/openapi.json")).json()
    for path in (CHAT, GENERATE):
        responses = document["paths"][path]["post"]["responses"]
        assert set(responses["200"]["content"]) == {"application/json", "application/x-ndjson"}
        schema = responses["400"]["content"]["application/json"]["schema"]
        assert schema == {"$ref": "#/components/schemas/OllamaErrorResponse"}
