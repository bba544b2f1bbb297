"""A data directory, those who write to it, and what must hold in it whatever was killed."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import aiohttp
import orjson

from tests.e2e.conftest import ServerProcess, serving
from tests.e2e.notes import ENDS, Notes, Told, said
from tests.e2e.writers import (
    Branching,
    Interactive,
    Repeating,
    Streaming,
    Talking,
    Writer,
)

KEPT_S = 1.0  # what was told so long ago is on disk
SLACK_S = 1.0  # of a machine that has other things to do, too


class House:
    """A data directory and those who write to it, whatever server there is."""

    def __init__(self, data: Path, seed: float, *args: str):
        self.data = data
        self.args = (*args, "--data-dir", str(data), "--log-level", "warning")
        self.source = random.Random(seed)
        self.notes = Notes()
        kinds = (Streaming, Repeating, Talking, Branching, Interactive)
        self.writers: list[Writer] = [
            kind(f"{kind.__name__}-{num}", self.notes, self.source.random())
            for kind in kinds
            for num in range(2 if kind is not Interactive else 1)
        ]
        self.quiet: tuple[str, bytes] | None = None  # a session that nobody uses, exported
        self.killed_at = 0.0

    async def round(self, seconds: float, *, kills_engine: bool = False) -> None:
        """A server's life. With `kills_engine`, its engine dies first, once or twice."""
        (self.data / "kv").mkdir(parents=True, exist_ok=True)
        (self.data / "kv" / ".0.kv.x.tmp").write_bytes(b"half")
        with serving(*self.args) as server:
            async with clients(server) as http:
                await self.check(http)
                if self.quiet is None:
                    self.quiet = await quiet(http)
                writing = asyncio.gather(*(writer.write(http) for writer in self.writers))
                if kills_engine:
                    for _ in range(self.source.choice((1, 2))):
                        await asyncio.wait([writing], timeout=seconds)
                        kill_all(children(server.pid))
                await asyncio.wait([writing], timeout=seconds)
                engines = children(server.pid)
                self.killed_at = time.monotonic()
                os.kill(server.pid, signal.SIGKILL)
                await writing
                await gone(engines)

    async def last_round(self) -> None:
        with serving(*self.args) as server:
            async with clients(server) as http:
                await self.check(http)

    # --- what must hold ---------------------------------------------------------------

    async def check(self, http: aiohttp.ClientSession) -> None:
        self._check_file()
        for told in list(self.notes.responses.values()):
            await self._check_response(http, told)
        for session, texts in self.notes.texts.items():
            await self._check_session(http, session, texts)
        for session, line in self.notes.copies.items():
            listed = await get(http, f"/v1/sessions/{session}/messages")
            assert [message["content"] for message in listed["data"]] == line
        await self._check_interactive(http)
        if self.quiet is not None:
            assert await export(http, self.quiet[0]) == self.quiet[1]

    def _check_file(self) -> None:
        """Before anybody writes."""
        path = self.data / "sessions.sqlite3"
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
            assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            assert db.execute("PRAGMA foreign_key_check").fetchall() == []
            stuck = "SELECT id FROM responses WHERE ended IS NULL OR steers IS NOT NULL"
            assert db.execute(stuck).fetchall() == []
            stuck = "SELECT id FROM messages WHERE state = 'in_progress'"
            assert db.execute(stuck).fetchall() == []
        assert all(file.suffix == ".kv" for file in (self.data / "kv").iterdir())

    async def _check_response(self, http: aiohttp.ClientSession, told: Told) -> None:
        now = await get(http, f"/v1/responses/{told.id}")
        after = {"successor": now["successor"]}  # which comes after the end
        if told.final is not None:
            assert told.final | after == now | after
        assert now["status"] in ("completed", "incomplete", "failed", "cancelled"), now
        assert (now["session"], now["message_id"]) == (told.session, told.message)
        text = output_text(now)
        events = await replay(http, told.id)
        assert said(events) == text
        assert last_response(events) | after == now
        if told.final is None:
            assert cut_at_most(told.text, text), (told.text, text)
            kept = told.before(self.killed_at - KEPT_S - SLACK_S)
            assert events[: len(kept)] == kept
            assert text.startswith(said(kept))
        elif told.events:
            assert events == [data for _, data in told.events]
        last = self.source.randrange(-1, len(events))
        assert await replay(http, told.id, last) == events[last + 1 :]
        if now["incomplete_details"] == {"reason": "server_restart"} and told.final is None:
            await self._go_on(http, told, text)
        told.final = now
        told.events = [(0.0, data) for data in events]

    async def _go_on(self, http: aiohttp.ClientSession, told: Told, text: str) -> None:
        body = {"continue": told.id, "max_output_tokens": 4, "temperature": 0}
        async with http.post("/v1/responses", json=body) as response:
            further = await response.json()
            assert response.status == 200, further
        assert output_text(further).startswith(text)
        assert further["usage"]["output_tokens"] > 0
        self.notes.whole(further, None)

    async def _check_session(
        self, http: aiohttp.ClientSession, session: str, texts: dict[str, str]
    ) -> None:
        assert (await get(http, f"/v1/sessions/{session}"))["running"] == []
        listed = await get(http, f"/v1/sessions/{session}/messages?tree=true")
        found = {message["id"]: message for message in listed["data"]}
        for id, text in texts.items():
            assert found[id]["content"] == text
        asked = [m["content"] for m in listed["data"] if m["role"] == "user"]
        assert len(set(asked)) == len(asked), "said twice"
        assert len({text.split()[0] for text in asked}) <= 1, "another's"
        assert self.notes.steers.get(session, set()) <= set(asked)

    async def _check_interactive(self, http: aiohttp.ClientSession) -> None:
        if not self.notes.pairs:
            return
        listed = await get(http, "/v1/sessions/77/messages")
        line = [message["content"] for message in listed["data"]]
        said = list(zip(line[::2], line[1::2], strict=True))
        assert [pair for pair in said if pair in self.notes.pairs] == self.notes.pairs


def cut_at_most(one: str, other: str) -> bool:
    return one.startswith(other) or other.startswith(one)


def last_response(events: list[bytes]) -> dict[str, Any]:
    """Of the event that ended it; what could not be said is told after that."""
    ends = [event for event in map(orjson.loads, events) if event["type"] in ENDS]
    assert len(ends) == 1
    response: dict[str, Any] = ends[0]["response"]
    return response


def output_text(response: dict[str, Any]) -> str:
    return "".join(item["content"][0]["text"] for item in response["output"])


async def get(http: aiohttp.ClientSession, path: str) -> Any:
    async with http.get(path) as response:
        answer = await response.json()
        assert response.status == 200, (path, answer)
        return answer


async def replay(http: aiohttp.ClientSession, id: str, after: int = -1) -> list[bytes]:
    query = {"stream": "true", "starting_after": str(after)}
    async with http.get(f"/v1/responses/{id}", params=query) as response:
        lines = (await response.read()).split(b"\n")
        assert response.status == 200, lines
        return [line[6:] for line in lines if line.startswith(b"data: ")]


async def export(http: aiohttp.ClientSession, session: str) -> bytes:
    async with http.get(f"/v1/sessions/{session}/export") as response:
        assert response.status == 200
        return await response.read()


async def quiet(http: aiohttp.ClientSession) -> tuple[str, bytes]:
    body = {"input": "quiet", "max_output_tokens": 5}
    async with http.post("/v1/responses", json=body) as response:
        session = (await response.json())["session"]
    return session, await export(http, session)


@asynccontextmanager
async def clients(server: ServerProcess) -> AsyncIterator[aiohttp.ClientSession]:
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=50)
    async with aiohttp.ClientSession(server.url, connector=connector, timeout=timeout) as http:
        yield http


def kill_all(pids: list[int]) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


def children(pid: int) -> list[int]:
    return [
        int(child)
        for task in Path(f"/proc/{pid}/task").iterdir()
        for child in (task / "children").read_text().split()
    ]


def is_alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


async def gone(pids: list[int]) -> None:
    """An engine does not outlive its server."""
    async with asyncio.timeout(20):
        while any(map(is_alive, pids)):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
