"""/v1/batches over the application."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestClient

from lmserve.settings import SessionSettings, Settings
from tests.server.batching import CHAT, begin, create, hi, jsonl, line, results, until, upload
from tests.server.conftest import WatchedEngine


@pytest.fixture
def settings(settings: Settings, tmp_path: Path) -> Settings:
    return replace(settings, sessions=SessionSettings(data_dir=str(tmp_path)))


FIELDS = {"endpoint": CHAT, "completion_window": "24h"}


async def test_every_line_is_answered_once(client: TestClient, fake: WatchedEngine) -> None:
    begun = await begin(client, [hi(f"a{i}", max_tokens=3) for i in range(20)])
    assert (begun["status"], begun["object"]) == ("validating", "batch")
    batch = await until(client, begun, "completed")
    assert batch["request_counts"] == {"total": 20, "completed": 20, "failed": 0}
    assert batch["error_file_id"] is None
    assert batch["in_progress_at"] <= batch["finalizing_at"] <= batch["completed_at"]
    found = await results(client, batch["output_file_id"])
    assert set(found) == {f"a{i}" for i in range(20)}
    for each in found.values():
        assert each["error"] is None
        assert each["response"]["status_code"] == 200
        body = each["response"]["body"]
        assert (body["object"], body["usage"]["completion_tokens"]) == ("chat.completion", 3)
    assert batch["usage"]["output_tokens"] == 60
    assert batch["usage"]["total_tokens"] == 60 + batch["usage"]["input_tokens"]
    assert batch["model"] == "mock"
    assert {submit.priority for submit in fake.submits} == {100}


async def test_lines_go_the_way_of_their_endpoint(client: TestClient) -> None:
    bodies: dict[str, dict[str, Any]] = {
        "/v1/completions": {"prompt": ["hi", "there"], "n": 2, "max_tokens": 2},
        "/v1/embeddings": {"input": ["hi", "there"]},
        "/v1/score": {"text_1": "hi", "text_2": ["a", "b"], "labels": ["a", "b"]},
        "/v1/rerank": {"query": "hi", "documents": ["a", "b"], "labels": ["a", "b"]},
    }
    for url, body in bodies.items():
        batch = await until(client, await begin(client, [line("x", body, url)], url), "completed")
        found = (await results(client, batch["output_file_id"]))["x"]["response"]["body"]
        direct = await (await client.post(url, json=body)).json()
        for one in (found, direct):
            for name in ("id", "created"):
                one.pop(name, None)
        assert found == direct


async def test_a_line_that_is_wrong_harms_no_other(client: TestClient) -> None:
    wrong: dict[str, dict[str, Any]] = {
        "stream": {"stream": True},
        "n": {"n": 0},
        "temperature": {"temperature": "hot"},
        "messages": {"messages": []},
        "logit_bias": {"logit_bias": {"99999999": 1}},
        "stop_token_ids": {"stop_token_ids": [-1]},
        "max_tokens": {"max_tokens": -1},
        "model": {"model": "other"},
    }
    lines = [hi("good"), *[hi(name, **fields) for name, fields in wrong.items()], hi("also good")]
    batch = await until(client, await begin(client, lines, metadata={"a": "b"}), "completed")
    assert batch["request_counts"] == {"total": 10, "completed": 2, "failed": 8}
    assert batch["metadata"] == {"a": "b"}
    assert set(await results(client, batch["output_file_id"])) == {"good", "also good"}
    failed = await results(client, batch["error_file_id"])
    assert set(failed) == set(wrong)
    for name, each in failed.items():
        assert each["error"] is None
        status = 404 if name == "model" else 400
        assert each["response"]["status_code"] == status
        assert each["response"]["body"]["error"]["param"].startswith(name)
    told = await (await client.get("/metrics")).text()
    assert 'lmserve:batch_lines_total{model_name="mock",result="failed"} 8.0' in told
    assert f'lmserve:batch_lines_running{{endpoint="{CHAT}",model_name="mock"}} 0.0' in told


async def test_a_line_of_any_depth_is_no_line(client: TestClient) -> None:
    deep = b"[" * 100_000 + b"]" * 100_000
    lines = jsonl([hi("deep", x="deep"), hi("good")]).replace(b'"x": "deep"', b'"x": ' + deep)
    _, file = await upload(client, lines)
    batch = await until(client, await create(client, file["id"]), "completed", "failed")
    assert batch["status"] == "failed"
    assert batch["errors"]["data"][0]["line"] == 1


WRONG_FILES: list[tuple[bytes, str, int | None]] = [
    (b"\n\n", "empty_file", None),
    (b"{", "invalid_json_line", 1),
    (b"\xef\xbb\xbf{}", "invalid_json_line", 1),
    (b"\xff\xfe", "invalid_json_line", 1),
    (b"[1]", "invalid_line", 1),
    (b"{}", "invalid_line", 1),
    (b'{"custom_id": "a", "body": ' + b"[" * 100_000, "invalid_json_line", 1),
    (jsonl([hi("")]), "invalid_custom_id", 1),
    (jsonl([hi("x" * 513)]), "invalid_custom_id", 1),
    (jsonl([hi("a"), hi("b"), hi("a")]), "duplicate_custom_id", 3),
    (jsonl([hi("a") | {"method": "GET"}]), "invalid_method", 1),
    (jsonl([hi("a") | {"url": "/v1/completions"}]), "invalid_url", 1),
    (jsonl([hi("a") | {"body": []}]), "invalid_body", 1),
    (jsonl([hi("a") | {"custom_id": 1}]), "invalid_line", 1),
]


async def test_a_file_that_is_wrong_fails_its_batch(
    client: TestClient, fake: WatchedEngine
) -> None:
    for content, code, number in WRONG_FILES:
        status, file = await upload(client, content)
        assert status == 200
        batch = await until(client, await create(client, file["id"]), "failed")
        (error,) = batch["errors"]["data"]
        assert (error["code"], error["line"]) == (code, number)
        assert batch["failed_at"] is not None
        assert (await client.delete(f"/v1/files/{file['id']}")).status == 200
    assert fake.submits == []


WRONG_ASKS: list[tuple[dict[str, Any], str, int]] = [
    ({"endpoint": "/v1/models"}, "endpoint", 400),
    ({"endpoint": None}, "endpoint", 400),
    ({"completion_window": "0h"}, "completion_window", 400),
    ({"completion_window": "169h"}, "completion_window", 400),
    ({"completion_window": "1d"}, "completion_window", 400),
    ({"completion_window": 24}, "completion_window", 400),
    ({"input_file_id": "file-none"}, "input_file_id", 404),
    ({"input_file_id": "../" * 1000}, "input_file_id", 404),
    ({"input_file_id": 5}, "input_file_id", 400),
    ({"metadata": {"a": 1}}, "metadata[...]", 400),
    ({"metadata": {"a": "x" * 513}}, "metadata.a", 400),
    (
        {"output_expires_after": {"anchor": "created_at", "seconds": 1}},
        "output_expires_after.seconds",
        400,
    ),
]


async def test_what_cannot_be_asked(client: TestClient) -> None:
    _, file = await upload(client, jsonl([hi("a")]))
    for fields, param, status in WRONG_ASKS:
        asked = {"input_file_id": file["id"]} | FIELDS | fields
        response = await client.post("/v1/batches", json=asked)
        error = (await response.json())["error"]
        assert (response.status, error["param"]) == (status, param)


async def test_only_files_for_batches_are_run(client: TestClient) -> None:
    _, file = await upload(client, jsonl([hi("a")]), "user_data")
    response = await client.post("/v1/batches", json={"input_file_id": file["id"]} | FIELDS)
    assert response.status == 400
    assert (await response.json())["error"]["param"] == "input_file_id"


async def test_a_cancelled_batch_keeps_what_it_has(client: TestClient, fake: WatchedEngine) -> None:
    fake.will_say("whole")
    fake.will_hang("part")
    begun = await begin(client, [hi("a"), hi("b")])
    while (await until(client, begun, "in_progress"))["request_counts"]["completed"] == 0:  # noqa: ASYNC110
        await asyncio.sleep(0.02)
    deleted = await client.delete(f"/v1/files/{begun['input_file_id']}")
    assert (deleted.status, (await deleted.json())["error"]["code"]) == (409, "batch_conflict")
    response = await client.post(f"/v1/batches/{begun['id']}/cancel")
    assert (await response.json())["status"] == "cancelling"
    batch = await until(client, begun, "cancelled")
    assert batch["cancelling_at"] <= batch["cancelled_at"]
    assert set(await results(client, batch["output_file_id"])) == {"a"}
    assert len(fake.aborts) == 1
    response = await client.post(f"/v1/batches/{begun['id']}/cancel")
    assert (response.status, (await response.json())["error"]["code"]) == (409, "batch_conflict")


async def test_a_dead_engine_costs_no_line(client: TestClient, fake: WatchedEngine) -> None:
    fake.will_hang("part")
    begun = await begin(client, [hi("a", max_tokens=20)])
    await fake.submitted.wait()
    fake.die()
    fake.resume()
    batch = await until(client, begun, "completed")
    assert set(await results(client, batch["output_file_id"])) == {"a"}
    assert len(fake.submits) == 2


async def test_batches_are_listed_a_page_at_a_time(client: TestClient) -> None:
    ids = [(await begin(client, [hi("a")]))["id"] for _ in range(3)]
    first = await (await client.get("/v1/batches", params={"limit": 2})).json()
    assert [each["id"] for each in first["data"]] == ids[:0:-1]
    assert first["has_more"]
    rest = await (await client.get("/v1/batches", params={"after": first["last_id"]})).json()
    assert ([each["id"] for each in rest["data"]], rest["has_more"]) == (ids[:1], False)
    for params in ({"limit": "0"}, {"limit": "x"}, {"after": "batch_none"}):
        assert (await client.get("/v1/batches", params=params)).status == 400
    assert (await client.get("/v1/batches/batch_none")).status == 404
    assert (await client.post("/v1/batches/batch_none/cancel")).status == 404
