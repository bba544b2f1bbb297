"""Files and batches through the official client, which takes nothing but what its types say."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import openai
import pytest
from openai import AsyncOpenAI

from lmserve.server.lifecycle import Server
from lmserve.settings import SessionSettings, Settings
from tests.server.batching import CHAT, PATIENCE_S, hi, jsonl


@pytest.fixture
def settings(settings: Settings, tmp_path: Path) -> Settings:
    return replace(settings, sessions=SessionSettings(data_dir=str(tmp_path)))


@pytest.fixture
async def api(server: Server) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(
        base_url=f"{server.url}/v1", api_key="none", max_retries=0, _strict_response_validation=True
    ) as client:
        yield client


async def test_a_batch_from_its_file_to_its_results(api: AsyncOpenAI) -> None:
    lines = jsonl([hi("a", max_tokens=2), hi("b", n=0)])
    file = await api.files.create(
        file=("requests.jsonl", lines),
        purpose="batch",
        expires_after={"anchor": "created_at", "seconds": 3600},
    )
    assert (file.bytes, file.filename, file.purpose) == (len(lines), "requests.jsonl", "batch")
    assert file.expires_at == file.created_at + 3600
    batch = await api.batches.create(
        input_file_id=file.id,
        endpoint=CHAT,
        completion_window="24h",
        metadata={"for": "test"},
        output_expires_after={"anchor": "created_at", "seconds": 7200},
    )
    async with asyncio.timeout(PATIENCE_S):
        while batch.status != "completed":
            batch = await api.batches.retrieve(batch.id)
            await asyncio.sleep(0.02)
    assert batch.request_counts is not None
    assert (batch.request_counts.completed, batch.request_counts.failed) == (1, 1)
    assert batch.usage is not None
    assert batch.usage.output_tokens == 2
    assert batch.metadata == {"for": "test"}
    assert batch.output_file_id is not None
    assert batch.error_file_id is not None
    output = await api.files.retrieve(batch.output_file_id)
    assert output.purpose == "batch_output"
    assert output.expires_at == output.created_at + 7200
    found = json.loads((await api.files.content(batch.output_file_id)).text)
    assert (found["custom_id"], found["response"]["status_code"]) == ("a", 200)
    failed = json.loads((await api.files.content(batch.error_file_id)).text)
    assert (failed["custom_id"], failed["response"]["status_code"]) == ("b", 400)
    assert [one.id async for one in api.batches.list(limit=1)] == [batch.id]
    assert {one.id async for one in api.files.list(limit=1)} == {
        file.id,
        batch.output_file_id,
        batch.error_file_id,
    }
    assert (await api.files.delete(file.id)).deleted


async def test_a_batch_that_fails(api: AsyncOpenAI) -> None:
    file = await api.files.create(file=("a", b"{}\n"), purpose="batch")
    batch = await api.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")
    async with asyncio.timeout(PATIENCE_S):
        while batch.status != "failed":
            batch = await api.batches.retrieve(batch.id)
            await asyncio.sleep(0.02)
    assert batch.errors is not None
    assert batch.errors.data is not None
    assert (batch.errors.data[0].code, batch.errors.data[0].line) == ("invalid_line", 1)
    with pytest.raises(openai.ConflictError):
        await api.batches.cancel(batch.id)
    with pytest.raises(openai.NotFoundError):
        await api.files.content("file-none")
    with pytest.raises(openai.NotFoundError):
        await api.batches.retrieve("batch_none")
