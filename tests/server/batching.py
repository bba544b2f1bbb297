"""Files and batches, asked for over the application."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

from aiohttp import FormData
from aiohttp.test_utils import TestClient

CHAT = "/v1/chat/completions"
PATIENCE_S = 20.0


def line(custom_id: str, body: dict[str, Any], url: str = CHAT, **other: Any) -> dict[str, Any]:
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": body} | other


def hi(custom_id: str, **body: Any) -> dict[str, Any]:
    return line(custom_id, {"messages": [{"role": "user", "content": "hi"}], **body})


def jsonl(lines: Sequence[Any]) -> bytes:
    return b"".join(json.dumps(each).encode() + b"\n" for each in lines)


async def upload(
    client: TestClient, content: bytes, purpose: str = "batch", **fields: str
) -> tuple[int, Any]:
    form = FormData()
    form.add_field("purpose", purpose)
    for name, value in fields.items():
        form.add_field(name, value)
    form.add_field("file", content, filename="requests.jsonl")
    response = await client.post("/v1/files", data=form)
    return response.status, await response.json()


async def begin(client: TestClient, lines: Sequence[Any], url: str = CHAT, **fields: Any) -> Any:
    status, file = await upload(client, jsonl(lines))
    assert status == 200, file
    return await create(client, file["id"], endpoint=url, **fields)


async def create(client: TestClient, file_id: str, **fields: Any) -> Any:
    asked = {"input_file_id": file_id, "endpoint": CHAT, "completion_window": "24h"} | fields
    response = await client.post("/v1/batches", json=asked)
    assert response.status == 200, await response.text()
    return await response.json()


async def until(client: TestClient, batch: Any, *statuses: str) -> Any:
    async with asyncio.timeout(PATIENCE_S):
        while True:
            response = await client.get(f"/v1/batches/{batch['id']}")
            found = await response.json()
            if found["status"] in statuses:
                return found
            await asyncio.sleep(0.02)


async def results(client: TestClient, file_id: str | None) -> dict[str, Any]:
    """By custom id, each of which is there once."""
    if file_id is None:
        return {}
    response = await client.get(f"/v1/files/{file_id}/content")
    assert response.status == 200
    found = [json.loads(text) for text in (await response.read()).splitlines()]
    by_id = {each["custom_id"]: each for each in found}
    assert len(by_id) == len(found)
    return by_id
