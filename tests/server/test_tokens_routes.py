"""POST /v1/encode and /generate over the application."""

from __future__ import annotations

from typing import Any

import msgspec
import orjson
import pytest
from aiohttp.test_utils import TestClient

from lmserve.messages import unpack_ids
from lmserve.service import prepare
from lmserve.service.limits import MAX_TEXTS

IM_START_ID = 256
ENCODE, GENERATE = "/v1/encode", "/generate"


async def post(client: TestClient, path: str, **fields: Any) -> tuple[int, Any]:
    response = await client.post(path, json=fields)
    return response.status, await response.json()


async def test_encode(client: TestClient) -> None:
    assert await post(client, ENCODE, input="hi") == (200, {"input_ids": [*b"hi"], "length": 2})
    assert await post(client, ENCODE, input=["hi", "", "ü"]) == (
        200,
        {"input_ids": [[*b"hi"], [], [*"ü".encode()]], "length": [2, 0, 2]},
    )
    assert await post(client, ENCODE, input=[]) == (200, {"input_ids": [], "length": []})


async def test_encode_as_it_would_be_asked(client: TestClient, fake: Any) -> None:
    await client.post(
        "/v1/chat/completions", json={"messages": [{"role": "user", "content": "hi"}]}
    )
    asked = unpack_ids(fake.submits[0].token_ids)
    status, body = await post(client, ENCODE, input="hi", do_preprocess=True)
    assert (status, body) == (200, {"input_ids": asked, "length": len(asked)})


async def test_encode_with_and_without_bos(client: TestClient, fake: Any) -> None:
    fake.info = msgspec.structs.replace(fake.info, bos_token="<|im_start|>", add_bos=True)
    for fields, ids in (
        ({}, [256, *b"hi"]),
        ({"add_bos": None}, [256, *b"hi"]),
        ({"add_bos": False}, [*b"hi"]),
    ):
        assert (await post(client, ENCODE, input="hi", **fields))[1]["input_ids"] == ids
    for add_bos in (True, False):
        _, body = await post(client, ENCODE, input="hi", add_bos=add_bos, do_preprocess=True)
        assert (body["input_ids"][0] == 256) == add_bos


@pytest.mark.parametrize("texts", [["long " * 200], ["a"] * 100])
async def test_long_texts_are_encoded_off_the_loop(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, texts: list[str]
) -> None:
    monkeypatch.setattr(prepare, "MAX_LOOP_CHARS", 50)
    _, body = await post(client, ENCODE, input=texts)
    assert body["length"] == [len(text) for text in texts]


async def test_encode_has_limits(client: TestClient, fake: Any) -> None:
    status, body = await post(client, ENCODE, input=["a"] * (MAX_TEXTS + 1))
    assert (status, body["error"]["param"]) == (400, "input")
    fake.info = msgspec.structs.replace(fake.info, max_model_len=2)
    status, body = await post(client, ENCODE, input=["a", "b" * 1000])
    assert (status, body["error"]["param"]) == (400, "input[1]")
    status, body = await post(client, ENCODE, input=5)
    assert (status, body["error"]["param"]) == (400, "input")
    await fake.sleep()
    status, body = await post(client, ENCODE, input="a")
    assert (status, body["error"]["code"]) == (503, "engine_unavailable")


@pytest.mark.parametrize("prompt", [{"prompt": "hi"}, {"input_ids": [*b"hi"]}])
async def test_an_answer_in_tokens(client: TestClient, fake: Any, prompt: dict[str, Any]) -> None:
    fake.will_say("Hel", [*b"lo", IM_START_ID])
    status, body = await post(client, GENERATE, **prompt)
    assert status == 200
    assert (body["text"], body["output_ids"]) == ("Hello", [*b"Hello", IM_START_ID])
    meta = body["meta_info"]
    assert (meta["prompt_tokens"], meta["completion_tokens"], meta["cached_tokens"]) == (2, 7, 0)
    assert meta["finish_reason"] == {"type": "stop"}
    assert meta["output_token_logprobs"] is None
    assert unpack_ids(fake.submits[0].token_ids) == [*b"hi"]
    assert fake.submits[0].sampling.max_tokens == 128


async def test_a_stream_of_tokens(client: TestClient, fake: Any) -> None:
    first, second = "ü".encode()
    fake.will_say([first], [second, *b"!"], [IM_START_ID], finish="length")
    response = await client.post(GENERATE, json={"prompt": "hi", "stream": True, "max_tokens": 4})
    assert response.headers["Content-Type"] == "text/event-stream; charset=utf-8"
    *events, done, end = (await response.read()).split(b"\n\n")
    assert (done, end) == (b"data: [DONE]", b"")
    chunks = [orjson.loads(event.removeprefix(b"data: ")) for event in events]
    assert [(chunk["text"], chunk["output_ids"]) for chunk in chunks] == [
        ("ü!", [first, second, *b"!"]),
        ("", [IM_START_ID]),
    ]
    reasons = [chunk["meta_info"]["finish_reason"] for chunk in chunks]
    assert reasons == [None, {"type": "length"}]
    assert chunks[-1]["meta_info"]["completion_tokens"] == 4


async def test_a_stream_that_fails_says_so(client: TestClient, fake: Any) -> None:
    fake.will_fail("out of luck", "Hel")
    response = await client.post(GENERATE, json={"prompt": "hi", "stream": True})
    *_, failure, done, _ = (await response.read()).split(b"\n\n")
    assert orjson.loads(failure.removeprefix(b"data: "))["error"]["message"] == "out of luck"
    assert done == b"data: [DONE]"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "prompt"),
        ({"prompt": "a", "input_ids": [1]}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"input_ids": []}, "input_ids"),
        ({"input_ids": [-1]}, "input_ids[0]"),
        ({"input_ids": [10**6]}, "input_ids[0]"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens"),
        ({"prompt": "a", "top_p": 0}, "top_p"),
        ({"prompt": "a", "top_logprobs_num": 1}, "top_logprobs_num"),
        ({"prompt": "a", "return_logprob": True, "top_logprobs_num": 21}, "top_logprobs_num"),
        ({"prompt": "a", "return_routed_experts": True}, "return_routed_experts"),
    ],
)
async def test_bad_prompts(client: TestClient, fields: dict[str, Any], param: str) -> None:
    status, body = await post(client, GENERATE, **fields)
    assert (status, body["error"]["param"], body["param"]) == (400, param, param)


async def test_lmdeploys_fields_reach_the_engine(client: TestClient, fake: Any) -> None:
    fields = {
        "repetition_penalty": 1.1,
        "ignore_eos": True,
        "top_k": 7,
        "min_p": 0.1,
        "min_new_tokens": 2,
        "seed": 4,
        "max_tokens": 5,
        "session_id": 3,
        "skip_special_tokens": False,
        "spaces_between_special_tokens": True,
    }
    for path, prompt in (
        ("/v1/chat/completions", {"messages": "raw"}),
        ("/v1/chat/completions", {"messages": [], "input_ids": [*b"raw"]}),
        ("/v1/completions", {"prompt": "raw"}),
        (GENERATE, {"prompt": "raw"}),
    ):
        status, body = await post(client, path, **prompt, **fields)
        assert status == 200, body
        submitted = fake.submits[-1]
        assert unpack_ids(submitted.token_ids) == [*b"raw"]  # no chat template
        sampling = submitted.sampling
        assert (sampling.repetition_penalty, sampling.top_k, sampling.min_p) == (1.1, 7, 0.1)
        assert (sampling.ignore_eos, sampling.min_tokens, sampling.seed) == (True, 2, 4)
