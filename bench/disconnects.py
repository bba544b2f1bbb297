#!/usr/bin/env python3
"""A thousand clients that leave at random moments: what is held two seconds after the last?

    .venv/bin/python bench/disconnects.py --clients 1000 --json disconnects.json

Starts a server of its own with the default model. Each client comes at a random moment of
`--seconds`, gets so far in one of the phases below, and drops its connection without a goodbye,
half of them by a reset. Then the server's metrics and /proc are asked until no request runs or
waits, no KV block is held, and tasks and descriptors are as before. Ends with 1 where that takes
more than `--within` seconds, or where the answer to a fixed question changed.

Answers that can be resumed go on without a reader for `--stream-grace-s`, which is what they are
for; here that is half a second. Idle conversations, whose KV is held while it is written to disk,
are left in memory meanwhile.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
from serving import Serving, as_dict, http, serving

from lmserve.bench.machine import LoadMeter, describe

WORDS = Path(__file__).read_text().split()
FLAGS = ("--stream-grace-s", "0.5", "--spill-after-s", "600")
RESET = struct.pack("ii", 1, 0)  # of SO_LINGER: close sends RST
PATIENCE_S = 20.0  # a client that has not come so far leaves all the same
CHAT, RESPONSES, INTERACTIVE = "/v1/chat/completions", "/v1/responses", "/v1/chat/interactive"
QUESTION = {"messages": [{"role": "user", "content": "Name ten rivers."}], "temperature": 0,
            "max_tokens": 32}  # fmt: skip
UPGRADE = (
    b"GET /v1/responses HTTP/1.1\r\nHost: localhost\r\n"
    b"Connection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)


@dataclass(frozen=True, slots=True)
class Visit:
    """How far a client gets: it sends, reads until it has seen `mark` so often, and waits."""

    sends: bytes
    wait_s: float = 0.0
    mark: bytes = b""
    num_marks: int = 0


# --- the phases ---------------------------------------------------------------------------


def connected(source: random.Random) -> Visit:
    return Visit(b"", wait_s=source.uniform(0, 0.3))


def in_the_head(source: random.Random) -> Visit:
    return _cut(_post(CHAT, _chat(source)), 0.02, 0.1, source)


def in_the_body(source: random.Random) -> Visit:
    return _cut(_post(CHAT, _chat(source)), 0.5, 0.99, source)


def just_sent(source: random.Random) -> Visit:
    return Visit(_post(CHAT, _chat(source)), wait_s=source.choice((0.0, source.uniform(0, 0.05))))


def in_the_prefill(source: random.Random) -> Visit:
    return Visit(_post(CHAT, _chat(source, num_words=600)), wait_s=source.uniform(0.02, 1.5))


def at_the_first_token(source: random.Random) -> Visit:
    return Visit(_post(CHAT, _chat(source)), mark=b"data: ", num_marks=1)


def in_mid_stream(source: random.Random) -> Visit:
    return Visit(_post(CHAT, _chat(source)), mark=b"data: ", num_marks=source.randrange(2, 40))


def before_a_whole_answer(source: random.Random) -> Visit:
    return Visit(_post(CHAT, _chat(source, stream=False)), wait_s=source.uniform(0, 3))


def in_a_turn_of_a_session(source: random.Random) -> Visit:
    body = {"prompt": _text(source, 20), "session_id": source.randrange(10**6), "stream": True,
            "interactive_mode": True, "request_output_len": 128}  # fmt: skip
    return Visit(_post(INTERACTIVE, body), mark=b'{"text"', num_marks=source.randrange(1, 20))


def in_a_stream_that_is_kept(source: random.Random) -> Visit:
    body = {"input": _text(source, 20), "stream": True, "max_output_tokens": 128}
    return Visit(_post(RESPONSES, body), mark=b"\ndata: ", num_marks=source.randrange(1, 30))


def in_the_upgrade(source: random.Random) -> Visit:
    return _cut(UPGRADE, 0.1, 1.0, source)


def in_mid_answer_over_a_websocket(source: random.Random) -> Visit:
    body = {"type": "response.create", "input": _text(source, 20), "max_output_tokens": 128,
            "store": source.random() < 0.5}  # fmt: skip
    return Visit(
        UPGRADE + _frame(json.dumps(body).encode()),
        mark=b'"sequence_number"',
        num_marks=source.randrange(1, 30),
    )


PHASES: tuple[Callable[[random.Random], Visit], ...] = (
    connected, in_the_head, in_the_body, just_sent, in_the_prefill, at_the_first_token,
    in_mid_stream, before_a_whole_answer, in_a_turn_of_a_session, in_a_stream_that_is_kept,
    in_the_upgrade, in_mid_answer_over_a_websocket,
)  # fmt: skip


def _chat(source: random.Random, *, num_words: int = 20, stream: bool = True) -> dict:
    message = {"role": "user", "content": _text(source, num_words)}
    return {"messages": [message], "max_tokens": 128, "stream": stream, "ignore_eos": True}


def _text(source: random.Random, num_words: int) -> str:
    return " ".join(source.choices(WORDS, k=num_words))


def _post(path: str, body: dict) -> bytes:
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data


def _cut(data: bytes, least: float, most: float, source: random.Random) -> Visit:
    return Visit(data[: int(len(data) * source.uniform(least, most))], source.uniform(0, 0.3))


def _frame(text: bytes) -> bytes:
    """Of a WebSocket's client, masked with zeros: as it is."""
    return struct.pack("!BBH4x", 0x81, 0x80 | 126, len(text)) + text


# --- the clients --------------------------------------------------------------------------


async def visit(url: str, plan: Visit, source: random.Random) -> str:
    """Says how it ended: `left` where it was meant to be, `late` where it lost its patience, else
    what the server did first."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    try:
        async with asyncio.timeout(PATIENCE_S):
            writer.write(plan.sends)
            await writer.drain()
            ended = await _until(reader, plan)
            await asyncio.sleep(plan.wait_s)
            return ended
    except TimeoutError:
        return "late"
    except OSError:
        return "reset by the server"
    finally:
        if source.random() < 0.5:
            with contextlib.suppress(OSError):
                writer.get_extra_info("socket").setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, RESET
                )
        writer.transport.abort()


async def _until(reader: asyncio.StreamReader, plan: Visit) -> str:
    seen = b""
    while seen.count(plan.mark) < plan.num_marks:
        data = await reader.read(65536)
        if not data:
            return "ended before"
        seen += data
        if seen.startswith((b"HTTP/1.1 4", b"HTTP/1.1 5")):
            return f"HTTP {seen[9:12].decode()}"
    return "left"


async def storm(args: argparse.Namespace, url: str) -> dict:
    source = random.Random(args.seed)
    begun, ends = Counter[str](), Counter[str]()

    async def one(number: int, seed: float) -> None:
        own = random.Random(seed)
        phase = args.phases[number % len(args.phases)]
        await asyncio.sleep(own.uniform(0, args.seconds))
        begun[phase.__name__.replace("_", " ")] += 1
        ends[await visit(url, phase(own), own)] += 1

    async with asyncio.TaskGroup() as tasks:
        for number in range(args.clients):
            tasks.create_task(one(number, source.random()))
    return {"phases": dict(begun), "ends": dict(ends)}


async def measure(args: argparse.Namespace, server: Serving) -> dict:
    async with http() as session:
        few = argparse.Namespace(clients=24, seconds=0.5, seed=0, phases=PHASES)
        await storm(few, server.url)  # warms up
        answer = await ask(session, server.url)
        _, before = await server.settled(session, await server.held(session), 60.0)
        meter, began = LoadMeter([server.pid]), time.perf_counter()
        told = await storm(args, server.url)
        wall_s = time.perf_counter() - began
        settled_s, after = await server.settled(session, before, 60.0)
        same = await ask(session, server.url) == answer
    return {
        "record": "disconnects",
        "machine": describe(),
        "clients": args.clients,
        "seed": args.seed,
        "wall_s": round(wall_s, 1),
        **told,
        "settled_s": settled_s,
        "before": as_dict(before),
        "after": as_dict(after),
        "same_answer": same,
        "load": meter.read().as_dict(),
        "passed": same and max(settled_s.values()) <= args.within,
    }


async def ask(session: aiohttp.ClientSession, url: str) -> str:
    async with session.post(f"{url}{CHAT}", json=QUESTION) as response:
        response.raise_for_status()
        return str((await response.json())["choices"][0]["message"]["content"])


async def run(args: argparse.Namespace) -> dict:
    async with serving(*FLAGS, extra=args.server_flags) as server:
        return await measure(args, server)


def report(result: dict) -> None:
    print(f"{result['clients']} clients left within {result['wall_s']} s")
    for name, num in sorted(result["phases"].items()):
        print(f"  {num:5} {name}")
    print("  how: " + ", ".join(f"{num} {how}" for how, num in sorted(result["ends"].items())))
    for when in ("before", "after"):
        held = result[when]
        print(f"  {when:6}: " + ", ".join(f"{name} {value}" for name, value in held.items()))
    same = "the same" if result["same_answer"] else "DIFFERENT"
    back = ", ".join(f"{name} {seconds:g} s" for name, seconds in result["settled_s"].items())
    print(f"  as before, after the last had left: {back}; a fixed answer is {same}")


def main() -> int:
    ap = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    ap.add_argument("--clients", type=int, default=1000)
    ap.add_argument("--seconds", type=float, default=20.0, help="in which they come")
    ap.add_argument("--within", type=float, default=2.0, help="seconds until nothing is held")
    ap.add_argument("--seed", type=int, default=1)
    ap.add_argument("--phase", help="only those with this in their name")
    ap.add_argument("--server-flags", default="", help="more of them, in one word")
    ap.add_argument("--json", help="append the result here, one line")
    args = ap.parse_args()
    words = (args.phase or "").replace(" ", "_")
    args.phases = [phase for phase in PHASES if words in phase.__name__]
    result = asyncio.run(run(args))
    report(result)
    if args.json:
        with Path(args.json).open("a") as file:
            file.write(json.dumps(result) + "\n")
    return 0 if result["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
