#!/usr/bin/env python3
"""A reconnect storm: streams cut at random points and resumed, until each has ended; every
transcript must equal that of its uncut twin.

    .venv/bin/python bench/reconnect.py --streams 500 --seed 1

Starts a server of its own (the default model with `--deterministic`, so that an answer does not
depend on who runs beside it). Some questions are asked once, uncut; then each stream asks one of
them again, is cut off two or three times without a goodbye, and comes back by SSE with
`starting_after`, by SSE with `Last-Event-ID`, or over a WebSocket. Ends with 1 where a transcript
differs or an event is missing or doubled.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

LMSERVE = Path(sys.executable).with_name("lmserve")
TERMINAL = ("response.completed", "response.incomplete", "response.failed")
QUESTIONS = [f"Count from {number} upwards, one number a line." for number in range(1, 21)]


@dataclass
class Transcript:
    """What one client has put together."""

    question: str
    id: str = ""
    events: dict[int, dict] = field(default_factory=dict)
    num_doubled: int = 0
    num_cuts: int = 0
    ended: bool = False

    def add(self, event: dict) -> None:
        number = event["sequence_number"]
        self.num_doubled += number in self.events
        self.events[number] = event
        if event["type"] == "response.created":
            self.id = event["response"]["id"]
        self.ended = event["type"] in TERMINAL

    @property
    def text(self) -> str:
        deltas = (e for _, e in sorted(self.events.items()) if e["type"].endswith("text.delta"))
        return "".join(event["delta"] for event in deltas)

    @property
    def whole(self) -> bool:
        return self.ended and not self.num_doubled and set(self.events) == set(range(self.next))

    @property
    def next(self) -> int:
        return max(self.events, default=-1) + 1


def main() -> int:
    ap = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    ap.add_argument("--streams", type=int, default=500)
    ap.add_argument("--at-once", type=int, default=100)
    ap.add_argument("--max-tokens", type=int, default=48)
    ap.add_argument("--port", type=int, help="default: one that is free")
    ap.add_argument("--seed", type=int, default=1)
    ap.add_argument("--mock", action="store_true", help="without a model: what it costs by itself")
    args = ap.parse_args()
    args.port = args.port or free_port()
    with tempfile.TemporaryDirectory() as folder, server(args.port, folder, args.mock):
        return asyncio.run(storm(args))


async def storm(args: argparse.Namespace) -> int:
    source = random.Random(args.seed)
    limit = asyncio.Semaphore(args.at_once)
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    base = f"http://127.0.0.1:{args.port}"
    async with aiohttp.ClientSession(base, connector=connector) as session:
        await healthy(session)
        asked = (uncut(session, question, args.max_tokens) for question in QUESTIONS)
        twins = dict(zip(QUESTIONS, await asyncio.gather(*asked), strict=True))
        began = time.monotonic()
        streams = [Transcript(source.choice(QUESTIONS)) for _ in range(args.streams)]
        seeds = [source.random() for _ in streams]

        async def one(transcript: Transcript, seed: float) -> None:
            async with limit, asyncio.timeout(600):
                await cut_and_resume(session, transcript, random.Random(seed), args.max_tokens)

        await asyncio.gather(*map(one, streams, seeds))
        took_s = time.monotonic() - began
    wrong = [one for one in streams if not one.whole or one.text != twins[one.question]]
    cuts = [one.num_cuts for one in streams]
    events = sum(len(one.events) for one in streams)
    print(
        f"{len(streams)} streams, {sum(cuts)} cuts (median {statistics.median(cuts):g} a stream), "
        f"{events} events in {took_s:.0f} s: {len(wrong)} differ from their uncut twins"
    )
    for one in wrong[:5]:
        print(f"  {one.id} {one.question!r}: doubled {one.num_doubled}, {len(one.events)} events")
    return 1 if wrong else 0


async def uncut(session: aiohttp.ClientSession, question: str, max_tokens: int) -> str:
    twin = Transcript(question)
    async for event in ask(session, question, max_tokens):
        twin.add(event)
    assert twin.whole, twin
    return twin.text


async def cut_and_resume(
    session: aiohttp.ClientSession, transcript: Transcript, source: random.Random, max_tokens: int
) -> None:
    num_cuts = source.choice((2, 3))
    while not transcript.ended:
        cut_after = source.randrange(1, 20) if transcript.num_cuts < num_cuts else None
        if not transcript.id:
            events = ask(session, transcript.question, max_tokens)
        else:
            way = source.choice((by_query, by_header, by_websocket))
            events = way(session, transcript.id, transcript.next - 1)
        async with contextlib.aclosing(events):
            async for event in events:
                transcript.add(event)
                if cut_after is not None and (cut_after := cut_after - 1) == 0:
                    break
        if not transcript.ended:
            transcript.num_cuts += 1
            await asyncio.sleep(source.random() * 0.5)


# --- the ways to a stream; left in the middle, each aborts its connection -----------------


async def ask(
    session: aiohttp.ClientSession, question: str, max_tokens: int
) -> AsyncIterator[dict]:
    body = {"input": question, "stream": True, "temperature": 0, "max_output_tokens": max_tokens}
    async with session.post("/v1/responses", json=body) as response:
        async for event in sse(response):
            yield event


async def by_query(session: aiohttp.ClientSession, id: str, cursor: int) -> AsyncIterator[dict]:
    query = {"stream": "true", "starting_after": str(cursor)}
    async with session.get(f"/v1/responses/{id}", params=query) as response:
        async for event in sse(response):
            yield event


async def by_header(session: aiohttp.ClientSession, id: str, cursor: int) -> AsyncIterator[dict]:
    headers = {"Last-Event-ID": str(cursor)}
    async with session.get(f"/v1/streams/{id}", headers=headers) as response:
        async for event in sse(response):
            yield event


async def by_websocket(session: aiohttp.ClientSession, id: str, cursor: int) -> AsyncIterator[dict]:
    socket = await session.ws_connect("/v1/responses")
    try:
        resume = {"type": "session.resume", "response_id": id, "starting_after": cursor}
        await socket.send_json(resume)
        async for message in socket:
            event = json.loads(message.data)
            if event["type"] == "error":
                raise SystemExit(f"{id} after {cursor}: {event}")
            if "sequence_number" in event:
                yield event
                if event["type"] in TERMINAL:
                    return
    finally:
        transport = socket.get_extra_info("socket") and socket._response.connection.transport
        if transport is not None:
            transport.abort()  # no goodbye


async def sse(response: aiohttp.ClientResponse) -> AsyncIterator[dict]:
    if response.status != 200:
        raise SystemExit(f"{response.url}: {response.status} {await response.text()}")
    try:
        async for line in response.content:
            if line.startswith(b"data: "):
                yield json.loads(line[6:])
    finally:
        response.close()  # no goodbye


# --- the server ---------------------------------------------------------------------------


@contextlib.contextmanager
def server(port: int, folder: str, mock: bool) -> Iterator[None]:
    command = [str(LMSERVE), "serve", "api_server", "--server-port", str(port)]
    command += ["--engine", "mock", "--mock-tokens-s", "50"] if mock else ["--deterministic"]
    with open(Path(folder, "log"), "wb") as log:
        process = subprocess.Popen(
            [*command, "--data-dir", folder], stdout=log, stderr=log, start_new_session=True
        )
        try:
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def healthy(session: aiohttp.ClientSession) -> None:
    async with asyncio.timeout(120):
        while True:
            with contextlib.suppress(aiohttp.ClientError):
                async with session.get("/health") as response:
                    if response.status == 200:
                        return
            await asyncio.sleep(0.1)


if __name__ == "__main__":
    sys.exit(main())
