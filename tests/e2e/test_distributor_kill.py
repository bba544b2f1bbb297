"""Two servers behind a distributor, all processes of their own; one is killed in mid-answer."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
from aiohttp import ClientSession

from lmserve.ids import node_of
from tests.e2e.conftest import ServerProcess, serving
from tests.server.sockets import connected

NUM_TOKENS = 60
LAST = "response.incomplete"  # of an answer that says as much as it may
BODY = {"input": "hi", "max_output_tokens": NUM_TOKENS, "ignore_eos": True}


@contextmanager
def distributing() -> Iterator[str]:
    command = [sys.executable, "-m", "lmserve", "serve", "proxy", "--server-port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        lines = iter(process.stdout.readline, "")
        yield next(found[0] for line in lines if (found := re.findall(r"https?://\S+", line)))
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)


@pytest.mark.slow
async def test_a_conversation_outlives_its_node(tmp_path):
    with ExitStack() as stack:
        url = stack.enter_context(distributing())

        def start(name: str) -> ServerProcess:
            return stack.enter_context(
                serving(
                    *("--engine", "mock", "--mock-tokens-s", "10", "--proxy-url", url),
                    *("--data-dir", str(tmp_path / name)),
                    env={"TMPDIR": str(tmp_path)},
                )
            )

        nodes = [await asyncio.to_thread(start, name) for name in "ab"]
        async with ClientSession(url) as client:
            await until(client, lambda told: alive(told) == {node.url for node in nodes})
            sessions = [await session_of(client, node.url) for node in nodes]
            async with connected(client) as socket:
                first = {}
                for lane, session in zip("ab", sessions, strict=True):
                    short = BODY | {"max_output_tokens": 2, "conversation": session}
                    await socket.send("response.create", stream_id=lane, **short)
                    first[lane] = (await socket.until(LAST))[-1]["response"]
                    assert node_of(first[lane]["id"]) == node_of(session)
                for lane in "ab":
                    await socket.send(
                        "response.create",
                        stream_id=lane,
                        previous_response_id=first[lane]["id"],
                        **BODY,
                    )
                heard: dict[str, list[Any]] = {"a": [], "b": []}
                while not all(len(deltas(events)) >= 15 for events in heard.values()):
                    event = await socket.receive()
                    heard[event["stream_id"]].append(event)
                os.kill(nodes[0].pid, signal.SIGKILL)
                while heard["b"][-1]["type"] != LAST:
                    event = await socket.receive()
                    heard[event["stream_id"]].append(event)
                lost = heard["a"][-1]
                assert (lost["type"], lost["error"]["code"]) == ("error", "node_lost")
                assert len(deltas(heard["b"])) >= NUM_TOKENS - 1  # nothing of it is missing
                numbers = [event["sequence_number"] for event in heard["b"]]
                assert numbers == list(range(len(numbers)))

                cut = heard["a"][0]["response"]["id"]
                away = await socket.error("session.get", session=sessions[0])
                assert away["error"]["code"] == "session_unavailable"
                # on another port: the node is known by its data
                again = await asyncio.to_thread(start, "a")
                await until(client, lambda told: again.url in alive(told))
                async with client.get(f"/v1/responses/{cut}") as response:
                    kept = await response.json()
                assert (kept["status"], kept["incomplete_details"]) == (
                    "incomplete",
                    {"reason": "server_restart"},
                )
                text = kept["output"][0]["content"][0]["text"]
                assert "".join(deltas(heard["a"])).startswith(text)
                assert text

                await socket.send("session.resume", response_id=cut, stream_id="a")
                told = (await socket.until(LAST))[1:]
                assert "".join(deltas(told)) == text
                fields = {name: BODY[name] for name in ("max_output_tokens", "ignore_eos")}
                fields["continue"] = cut
                await socket.send(
                    "response.create", stream_id="a", conversation=sessions[0], **fields
                )
                events = await socket.until(LAST)
                whole = events[-1]["response"]
                assert whole["session"] == sessions[0]
                listed = await socket.call("session.messages", session=sessions[0])
                assert [message["role"] for message in listed["data"]] == ["user", "assistant"] * 2
                assert listed["data"][-1]["content"].startswith(text)


async def session_of(client: ClientSession, node_url: str) -> str:
    async with client.post(node_url + "/v1/sessions", json={}) as response:
        return str((await response.json())["id"])


def alive(status: dict[str, Any]) -> set[str]:
    return {url for url, node in status.items() if node["alive"] and node["node_id"]}


def deltas(events: list[Any]) -> list[str]:
    return [event["delta"] for event in events if event["type"] == "response.output_text.delta"]


async def until(client: ClientSession, condition: Any) -> None:
    async with asyncio.timeout(30):
        while True:
            async with client.get("/nodes/status") as response:
                if condition(await response.json()):
                    return
            await asyncio.sleep(0.05)
