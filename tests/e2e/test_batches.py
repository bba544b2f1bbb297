"""Batches of a real server that is killed and stopped in their midst: every line once."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI

from tests.e2e.conftest import ServerProcess, TinyModel, serving

NUM_LINES = 40
PATIENCE_S = 45.0
MOCK = ("--engine", "mock", "--mock-tokens-s", "80")


def lines() -> bytes:
    """One of them is wrong."""
    return b"".join(
        json.dumps(
            {
                "custom_id": f"line-{number}",
                "method": "POST",
                "url": "/v1/completions",
                "body": {
                    "prompt": f"{number}: once upon a time",
                    "max_tokens": 20 if number != 7 else -1,
                    "temperature": 0,
                    "ignore_eos": True,
                },
            }
        ).encode()
        + b"\n"
        for number in range(NUM_LINES)
    )


def client(server: ServerProcess) -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def wait(api: OpenAI, id: str, num_settled: int) -> Any:
    """Until so many lines have a result."""
    until_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < until_s:
        batch = api.batches.retrieve(id)
        counts = batch.request_counts
        assert counts is not None
        if counts.completed + counts.failed >= num_settled:
            return batch
        time.sleep(0.05)
    raise AssertionError("the batch stands still")


def told(api: OpenAI, file_id: str) -> list[str]:
    texts = api.files.content(file_id).text.splitlines()
    return [json.loads(text)["custom_id"] for text in texts]


def run_through_ends(data: Path, ends: Sequence[str], *args: str) -> None:
    """Servers that are killed or stopped, one after the other, and a last one."""
    args = (*args, "--data-dir", str(data), "--batch-concurrency", "4")
    id = ""
    for number, end in enumerate(ends, 1):
        with serving(*args) as server, client(server) as api:
            id = id or begin(api)
            wait(api, id, 6 * number)
            if end == "killed":
                os.kill(server.pid, signal.SIGKILL)
    with serving(*args) as server, client(server) as api:
        found = wait(api, id, NUM_LINES)
        while found.status != "completed":
            found = wait(api, id, NUM_LINES)
        assert (found.request_counts.completed, found.request_counts.failed) == (NUM_LINES - 1, 1)
        answered, failed = told(api, found.output_file_id), told(api, found.error_file_id)
        assert failed == ["line-7"]
        assert sorted(answered + failed) == sorted(f"line-{number}" for number in range(NUM_LINES))
        assert found.usage is not None
        assert found.usage.output_tokens == 20 * (NUM_LINES - 1)


def begin(api: OpenAI) -> str:
    file = api.files.create(file=("lines.jsonl", lines()), purpose="batch")
    batch = api.batches.create(
        input_file_id=file.id, endpoint="/v1/completions", completion_window="24h"
    )
    return batch.id


def test_a_batch_outlives_its_servers(tmp_path: Path) -> None:
    run_through_ends(tmp_path, ["killed"], *MOCK)


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_batch_of_a_real_engine_outlives_its_servers(
    tmp_path: Path, tiny_llama: TinyModel
) -> None:
    ends = ["killed", "stopped"]
    run_through_ends(tmp_path, ends, str(tiny_llama.path), "--dtype", "float32", "--threads", "1")
