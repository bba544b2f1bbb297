"""Traces, as a collector gets them."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from click.testing import CliRunner

from lmserve import __version__
from lmserve.cli.main import cli
from lmserve.server.app import build_app
from lmserve.server.lifecycle import running_server
from lmserve.settings import LogSettings, SessionSettings, Settings
from lmserve.tracing import tracing
from tests.server.batching import begin, hi, until
from tests.server.collector import Collector, attributes, collecting

TRACE_ID, PARENT_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
HELLO: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}
ERROR = 2  # a span's status


@pytest.fixture(autouse=True)
def promptly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of spans leave at once, not every five seconds."""
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")


@pytest.fixture
async def collector() -> AsyncIterator[Collector]:
    async with collecting() as running:
        yield running


def traced(settings: Settings, endpoint: str) -> Settings:
    return dataclasses.replace(settings, log=LogSettings(otlp_traces_endpoint=endpoint))


async def test_a_request_and_its_parts(settings: Settings, fake: Any, collector: Collector) -> None:
    fake.will_say("a", "b", finish="length")
    headers = {"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01", "X-Request-Id": "r-1"}
    async with (
        running_server(traced(settings, collector.endpoint), fake) as server,
        aiohttp.ClientSession(server.url, headers=headers) as web,
    ):
        async with web.post("/v1/chat/completions", json=HELLO) as response:
            assert response.status == 200
        async with web.get("/health") as response:
            assert response.status == 200
        (request,) = await collector.named("POST /v1/chat/completions")
        (answer,) = await collector.named("chat mock")
    assert (request.trace_id.hex(), request.parent_span_id.hex()) == (TRACE_ID, PARENT_ID)
    assert answer.trace_id == request.trace_id
    assert attributes(request) == {
        "http.request.method": "POST",
        "url.path": "/v1/chat/completions",
        "url.scheme": "http",
        "http.route": "/v1/chat/completions",
        "http.response.status_code": 200,
        "lmserve.request_id": "r-1",
    }
    assert list(collector.children(request)) == ["chat mock"]
    parts = collector.children(answer)
    assert list(parts) == ["render", "prepare", "queue", "prefill", "decode"]
    moments = [answer.start_time_unix_nano]
    for part in parts.values():
        moments += [part.start_time_unix_nano, part.end_time_unix_nano]
    moments.append(answer.end_time_unix_nano)
    assert moments == sorted(moments)
    told = attributes(answer)
    assert told["gen_ai.operation.name"] == "chat"
    assert told["gen_ai.request.model"] == told["gen_ai.response.model"] == "mock"
    assert told["gen_ai.request.max_tokens"] == 3
    assert told["gen_ai.usage.input_tokens"] == told["gen_ai.usage.prompt_tokens"] > 0
    assert told["gen_ai.usage.output_tokens"] == told["gen_ai.usage.completion_tokens"] == 2
    assert told["gen_ai.response.finish_reasons"] == ["length"]
    assert told["gen_ai.request.id"] == "r-1"
    assert told["gen_ai.latency.e2e"] >= told["gen_ai.latency.time_to_first_token"] > 0
    assert collector.resource["service.name"] == "lmserve"
    assert collector.resource["service.version"] == __version__
    assert not [span for span in collector.spans if "health" in span.name]
    assert "hi" not in str([attributes(span) for span in collector.spans])


async def test_what_fails_has_an_error(settings: Settings, fake: Any, collector: Collector) -> None:
    fake.will_fail("out of luck")
    async with (
        running_server(traced(settings, collector.endpoint), fake) as server,
        aiohttp.ClientSession(server.url) as web,
    ):
        async with web.post("/v1/completions", json={"prompt": "hi"}) as response:
            assert response.status == 500
        (request,) = await collector.named("POST /v1/completions")
        (answer,) = await collector.named("text_completion mock")
    assert request.status.code == answer.status.code == ERROR
    assert not request.parent_span_id
    assert answer.status.message == "out of luck"
    assert attributes(answer)["error.type"] == "EngineError"
    assert attributes(request)["error.type"] == "500"


async def test_answers_over_a_websocket(
    settings: Settings, fake: Any, collector: Collector
) -> None:
    async with (
        running_server(traced(settings, collector.endpoint), fake) as server,
        aiohttp.ClientSession(server.url) as web,
    ):
        async with web.ws_connect("/v1/responses") as connected:
            for text in ("one", "two"):
                event = {"type": "response.create", "input": text, "max_output_tokens": 2}
                await connected.send_json(event)
                async for message in connected:
                    if message.json()["type"].startswith(("response.completed", "response.incomp")):
                        break
        (connection,) = await collector.named("GET /v1/responses")
        answers = await collector.named("chat mock", 2)
    assert [answer.parent_span_id for answer in answers] == [connection.span_id] * 2
    assert attributes(connection)["http.response.status_code"] == 101


async def test_a_collector_that_is_away_costs_a_line(
    settings: Settings,
    fake: Any,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tracing, "EXPORT_TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]  # and nobody listens there any more
    seen = asyncio.Event()

    class Seen(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            loop.call_soon_threadsafe(seen.set)

    loop = asyncio.get_running_loop()
    handler = Seen()
    tracing.logger.addHandler(handler)
    try:
        async with (
            running_server(traced(settings, f"http://127.0.0.1:{port}"), fake) as server,
            aiohttp.ClientSession(server.url) as web,
        ):
            async with web.post("/v1/chat/completions", json=HELLO) as response:
                assert response.status == 200
            await seen.wait()
            async with web.post("/v1/chat/completions", json=HELLO) as response:
                assert response.status == 200
    finally:
        tracing.logger.removeHandler(handler)
    lines = [record for record in caplog.records if "opentelemetry" in record.name]
    told = [record for record in caplog.records if record.name == tracing.logger.name]
    assert not lines
    assert len(told) == 1
    assert f"127.0.0.1:{port}" in told[0].getMessage()


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace.export", None)
    command = ["serve", "api_server", "no/such-model", "--otlp-traces-endpoint", "http://a:1"]
    told = CliRunner().invoke(cli, [*command, "--server-port", "0"])
    assert told.exit_code == 1
    assert "pip install 'lmserve[otel]'" in told.output


async def test_a_batch_is_no_part_of_the_request_that_brought_it(
    settings: Settings, fake: Any, collector: Collector, tmp_path: Path, aiohttp_client: Any
) -> None:
    settings = dataclasses.replace(settings, sessions=SessionSettings(data_dir=str(tmp_path)))
    client = await aiohttp_client(build_app(traced(settings, collector.endpoint), fake))
    batch = await begin(client, [hi("a", max_tokens=2)])
    await until(client, batch, "completed")
    (answer,) = await collector.named("chat mock")
    assert not answer.parent_span_id
    assert attributes(answer)["gen_ai.request.id"] == batch["id"]
