"""Clients that write all the time, on every route, and note what they were told."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any

import aiohttp
import orjson

from tests.e2e.notes import ENDS, Notes, Told

GONE = (aiohttp.ClientError, ConnectionError, EOFError)  # the server is


class NoEngineError(Exception):
    """It died, and the next one is not there yet."""


class Writer:
    """One client. `write` runs until the server is gone; it may be called again with the next."""

    def __init__(self, name: str, notes: Notes, seed: float):
        self.name = name
        self.notes = notes
        self.source = random.Random(seed)
        self._num = 0

    async def write(self, http: aiohttp.ClientSession) -> None:
        with suppress(*GONE):
            while True:
                try:
                    await self.once(http)
                except NoEngineError:
                    await asyncio.sleep(0.1)

    async def once(self, http: aiohttp.ClientSession) -> None:
        raise NotImplementedError

    def text(self) -> str:
        """That nobody else says, and nobody twice."""
        self._num += 1
        return f"{self.name} says {self._num}"

    def length(self) -> int:
        return self.source.choice((3, 12, 40, 300))

    async def post(self, http: aiohttp.ClientSession, path: str, **body: Any) -> dict[str, Any]:
        headers = body.pop("headers", None)
        async with http.post(path, json=body, headers=headers) as response:
            answer: dict[str, Any] = orjson.loads(await response.read())
            check(response.status, answer)
            return answer

    async def stream(
        self, http: aiohttp.ClientSession, path: str, text: str | None, **body: Any
    ) -> Told:
        """A response, followed to its end."""
        async with http.post(path, json=body | {"stream": True}) as response:
            if response.status != 200:
                check(response.status, orjson.loads(await response.read()))
            return await self.follow(data_lines(response), text)

    async def follow(
        self,
        lines: AsyncIterator[bytes],
        text: str | None,
        on_event: Callable[[Told, dict[str, Any]], Awaitable[None]] | None = None,
    ) -> Told:
        told: Told | None = None
        async for data in lines:
            event = orjson.loads(data)
            if event["type"] == "response.created":
                assert told is None
                told = self.notes.began(event["response"], text)
            assert told is not None, event
            assert event["sequence_number"] == len(told.events), event
            told.events.append((time.monotonic(), data))
            if event["type"] in ENDS:
                told.final = event["response"]
                return told
            if on_event is not None:
                await on_event(told, event)
        raise EOFError("the server is gone")


def check(status: int, answer: dict[str, Any]) -> None:
    """That the engine died, or is not there yet, is told clearly, and nothing to complain of."""
    if status != 200:
        assert status in (500, 503) and "engine" in answer["error"]["message"], answer
        raise NoEngineError


async def data_lines(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    async for line in response.content:
        if line.startswith(b"data: ") and line.endswith(b"\n"):
            yield line[6:-1]


async def again(frame: bytes, frames: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """With one that was looked at."""
    yield frame
    async for further in frames:
        yield further


class Streaming(Writer):
    """A chain by `previous_response_id`; begins anew now and then."""

    _previous: str | None = None

    async def once(self, http: aiohttp.ClientSession) -> None:
        previous = self._previous if self.source.random() < 0.8 else None
        text, self._previous = self.text(), None
        body = {"input": text, "max_output_tokens": self.length(), "temperature": 0}
        told = await self.stream(http, "/v1/responses", text, **body, previous_response_id=previous)
        self._previous = told.id


class Repeating(Writer):
    """Whole answers, each with a key: what was cut is asked again."""

    _pending: tuple[str, dict[str, Any]] | None = None

    async def once(self, http: aiohttp.ClientSession) -> None:
        if self._pending is None:
            text = self.text()
            background = self.source.random() < 0.3
            body = {"input": text, "max_output_tokens": self.length(), "background": background}
            self._pending = text, body
        text, body = self._pending
        headers = {"Idempotency-Key": text.replace(" ", "-")}
        answer = await self.post(http, "/v1/responses", **body, headers=headers)
        self._pending = None
        if answer["status"] in ("queued", "in_progress"):
            self.notes.began(answer, text)
        else:
            self.notes.whole(answer, text)


class Talking(Writer):
    """Over a WebSocket: chains, steers, forks."""

    async def once(self, http: aiohttp.ClientSession) -> None:
        async with http.ws_connect("/v1/responses") as socket:
            previous = None
            for _ in range(5):
                previous = await self._turn(socket, previous)

    async def _turn(self, socket: Any, previous: str | None) -> str | None:
        text: str | None = self.text()
        create = {"type": "response.create", "input": text, "max_output_tokens": self.length()}
        await socket.send_json(create | {"previous_response_id": previous})
        frames = self._frames(socket)
        while True:
            steer = self.text()
            told = await self.follow(frames, text, self._maybe_steer(socket, steer))
            assert told.final is not None
            taken = self.notes.steers.setdefault(told.session, set())
            if steer not in taken:
                return told.id
            frame = await anext(frames, b"")
            if not frame:
                raise EOFError("the server is gone")
            if b"response.steer.failed" in frame:  # given back
                taken.remove(steer)
                told.events.append((time.monotonic(), frame))
                return None
            frames, text = again(frame, frames), None

    def _maybe_steer(
        self, socket: Any, text: str
    ) -> Callable[[Told, dict[str, Any]], Awaitable[None]]:
        at = self.source.choice((None, 3, 6, 20))

        async def on_event(told: Told, event: dict[str, Any]) -> None:
            if event["sequence_number"] == at:
                steering = {"type": "response.steer", "previous_response_id": told.id}
                await socket.send_json(steering | {"input": text})
            if event["type"] == "response.steer.accepted":
                self.notes.steers.setdefault(told.session, set()).add(text)

        return on_event

    async def _frames(self, socket: Any) -> AsyncIterator[bytes]:
        async for frame in socket:
            event = orjson.loads(frame.data)
            if event["type"] == "error":
                check(event["status"], event)
            if event["type"] != "response.steer.failed" or "id" in event["steer"]:
                yield frame.data.encode()  # else it had ended, and was not steered


class Branching(Writer):
    """Turns in a session: on, edited, made again; forks; messages that nobody answers."""

    _turns: list[Told]
    _made = False

    async def once(self, http: aiohttp.ClientSession) -> None:
        path = f"/v1/sessions/{self.name}"
        if not self._made:
            with suppress(AssertionError):  # it was made, and not told
                await self.post(http, "/v1/sessions", id=self.name)
            self._made, self._turns = True, []
            self.notes.texts.setdefault(self.name, {})
        way = self.source.choice(("on", "on", "edit", "regenerate", "append", "fork"))
        if way == "append":
            text = self.text()
            message = {"role": "user", "content": text}
            listed = await self.post(http, f"{path}/messages", messages=[message])
            self.notes.texts[self.name][listed["data"][-1]["id"]] = text
        elif way == "fork" and self._turns:
            await self._fork(http, path)
        else:
            await self._turn(http, path, way)

    async def _fork(self, http: aiohttp.ClientSession, path: str) -> None:
        at = self.source.choice(self._turns).message
        copy = await self.post(http, f"{path}/fork", at=at)
        async with http.get(f"{path}/messages", params={"at": at}) as response:
            line = (await response.json())["data"]
        self.notes.copies[copy["id"]] = [message["content"] for message in line]

    async def _turn(self, http: aiohttp.ClientSession, path: str, way: str) -> None:
        asked = [turn for turn in self._turns if turn.inputs]
        body: dict[str, Any] = {"max_output_tokens": self.length()}
        text: str | None = None
        if way == "regenerate" and self._turns:
            body["regenerate"] = self.source.choice(self._turns).message
        else:
            text = body["input"] = self.text()
            if way == "edit" and asked:
                body["edit"] = self.source.choice(asked).inputs[0]
        if self.source.random() < 0.5:
            told = await self.stream(http, f"{path}/turns", text, **body)
        else:
            told = self.notes.whole(await self.post(http, f"{path}/turns", **body), text)
        self._turns.append(told)


class Interactive(Writer):
    """LMDeploy's route, with a session of its own."""

    async def once(self, http: aiohttp.ClientSession) -> None:
        text = self.text()
        answer = await self.post(
            http, "/v1/chat/interactive", prompt=text, session_id=77, interactive_mode=True,
            request_output_len=self.length() // 4 + 1,
        )  # fmt: skip
        if answer["finish_reason"] != "error":  # else its engine died
            self.notes.pairs.append((text, answer["text"]))
