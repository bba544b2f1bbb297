"""Answers whose server stops, or whose engine dies or stalls: one clear end for every reader."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any

import aiohttp
import orjson
import pytest

from tests.e2e.conftest import TinyModel, serving
from tests.e2e.house import children, clients, get, last_response, output_text, replay
from tests.e2e.notes import ENDS
from tests.e2e.writers import data_lines

LONG = {"input": "Count.", "temperature": 0, "max_output_tokens": 400, "ignore_eos": True}


class Readers:
    """One answer, read by its SSE stream, by another, and by a WebSocket."""

    def __init__(self, http: aiohttp.ClientSession):
        self._http = http
        self._reading: list[asyncio.Task[list[bytes]]] = []
        self.socket: Any = None
        self.id = ""

    async def begin(self, **body: Any) -> None:
        """Returns when some text has come."""
        response = await self._http.post("/v1/responses", json=LONG | body | {"stream": True})
        lines = data_lines(response)
        told = [await anext(lines)]
        self.id = orjson.loads(told[0])["response"]["id"]
        while b"output_text.delta" not in told[-1]:
            told.append(await anext(lines))
        again = await self._http.get(f"/v1/streams/{self.id}")
        self.socket = await self._http.ws_connect("/v1/responses")
        await self.socket.send_json({"type": "session.resume", "response_id": self.id})
        assert (await self.socket.receive_json())["type"] == "session.resume.done"
        for reading in (rest(told, lines), rest([], data_lines(again)), self._frames()):
            self._reading.append(asyncio.create_task(reading))

    async def ended(self) -> list[bytes]:
        """What all of them were told: the same."""
        one, *others = await asyncio.gather(*self._reading)
        assert others == [one, one]
        assert [orjson.loads(data)["type"] in ENDS for data in one].count(True) == 1
        assert orjson.loads(one[-1])["type"] in ENDS
        return one

    async def _frames(self) -> list[bytes]:
        told: list[bytes] = []
        while not told or orjson.loads(told[-1])["type"] not in ENDS:
            told.append((await self.socket.receive_str(timeout=50)).encode())
        return told


async def rest(told: list[bytes], lines: Any) -> list[bytes]:
    return told + [data async for data in lines]


def flags(model: TinyModel, data: Any, *more: str) -> tuple[str, ...]:
    return (str(model.path), "--dtype", "float32", "--threads", "1", "--log-level", "error",
            "--data-dir", str(data), *more)  # fmt: skip


async def test_the_death_of_an_engine_is_one_end_for_every_reader(tiny_llama, tmp_path):
    with serving(*flags(tiny_llama, tmp_path)) as server:
        async with clients(server) as http:
            readers = Readers(http)
            await readers.begin()
            whole = asyncio.create_task(whole_answer(http))
            (engine,) = children(server.pid)
            os.kill(engine, signal.SIGKILL)
            response = last_response(await readers.ended())
            assert response["status"] == "failed"
            assert "died" in response["error"]["message"]
            assert (await whole)[0] in (200, 500)  # begun by then, or not
            assert await get(http, f"/v1/responses/{readers.id}") == response
            await ready(http)
            create = {"type": "response.create", "previous_response_id": readers.id}
            await readers.socket.send_json(create | LONG | {"max_output_tokens": 3})
            while True:  # the connection goes on
                event = await readers.socket.receive_json(timeout=20)
                if event["type"] in ENDS:
                    break
            assert event["response"]["usage"]["output_tokens"] == 3


async def test_an_engine_that_stalls_costs_time_only(tiny_llama, tmp_path):
    with serving(*flags(tiny_llama, tmp_path, "--stuck-after-s", "0.5")) as server:
        async with clients(server) as http:
            twin = await whole_answer(http)
            readers = Readers(http)
            await readers.begin()
            (engine,) = children(server.pid)
            os.kill(engine, signal.SIGSTOP)
            async with asyncio.timeout(20):
                while (await health(http))["state"] != "stuck":  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            os.kill(engine, signal.SIGCONT)
            assert output_text(last_response(await readers.ended())) == output_text(twin[1])


@pytest.mark.parametrize("drain_s", ["30", "0"])
async def test_a_stopped_server_ends_or_finishes_its_answers(tmp_path, drain_s):
    args = ("--engine", "mock", "--mock-tokens-s", "200", "--data-dir", str(tmp_path))
    with serving(*args, "--drain-timeout-s", drain_s) as server:
        async with clients(server) as http:
            readers = Readers(http)
            await readers.begin()
            os.kill(server.pid, signal.SIGTERM)
            told = await readers.ended()
            closing = await readers.socket.receive(timeout=20)
            assert (closing.type, closing.data) == (aiohttp.WSMsgType.CLOSE, 1001)
            await readers.socket.close()
    response = last_response(told)
    reason = "server_shutdown" if drain_s == "0" else "max_output_tokens"
    assert response["incomplete_details"] == {"reason": reason}
    with serving(*args) as server:
        async with clients(server) as http:
            assert await get(http, f"/v1/responses/{readers.id}") == response
            assert await replay(http, readers.id) == told


async def whole_answer(http: aiohttp.ClientSession) -> tuple[int, Any]:
    async with http.post("/v1/responses", json=LONG) as response:
        return response.status, await response.json()


async def health(http: aiohttp.ClientSession) -> Any:
    async with http.get("/health") as response:
        return await response.json()


async def ready(http: aiohttp.ClientSession) -> None:
    async with asyncio.timeout(50):
        while (await health(http))["state"] != "ready":  # noqa: ASYNC110
            await asyncio.sleep(0.05)
