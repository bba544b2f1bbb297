#!/usr/bin/env python3
"""SIGTERM under load: what finishes by the deadline, what is told beyond it, what is refused?

    .venv/bin/python bench/drain.py --json drain.json

Starts a server of its own with the default model. Answers are asked for all at once, in turn as
server-sent events, over a WebSocket and whole; one of ten is longer than any deadline allows. When
all are accepted and some have ended, the server gets SIGTERM; from then on others come, which must
hear 503 with Retry-After. Ends with 1 where an answer was cut off, ended before the deadline or
was told its end twice, where a newcomer was not told to go elsewhere, or the server did not end.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from bench.faults import ends_of, until_ready
from bench.serving import Serving, http, metrics, serving
from lmserve.bench.figures import percentiles
from lmserve.bench.machine import LoadMeter, describe

CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"
ENDED = "vllm:request_success_total/"
LEAST_TOKENS, MOST_TOKENS, ENDLESS_TOKENS = 8, 64, 7000
ENDED_SHARE = 0.1  # of the answers have ended when the signal comes
LOOK_S, EACH_S, BEGIN_S, AFTER_S = 0.05, 0.25, 300.0, 1.0
EARLY_S, LATE_S = 0.5, 15.0  # an end by the deadline may come so early, that of the server so late


@dataclass
class Seen:
    """What the clients were told, on the clock of `time.monotonic`."""

    ends: list[tuple[str, float]] = field(default_factory=list)  # how and when, after the signal
    before: int = 0  # that finished before the signal
    wrong: Counter[str] = field(default_factory=Counter)  # ends that must not be, in words
    refused: Counter[str] = field(default_factory=Counter)  # newcomers, by what they heard
    signal_s: float = 0.0
    exit_status: int | None = None
    exit_s: float = 0.0  # after the signal


async def sse(session: aiohttp.ClientSession, url: str, num_tokens: int) -> list[str]:
    """How it ended: one word, if all is well. So with the others."""
    ends, is_over = [], False
    async with session.post(f"{url}{CHAT}", json=chat(num_tokens) | {"stream": True}) as response:
        if response.status != 200:
            return [f"HTTP {response.status}"]
        async for line in response.content:
            if line.startswith(b"data: {"):
                ends += ends_of(json.loads(line[6:]))
            is_over = is_over or line.startswith(b"data: [DONE]")
    return ends if is_over else [*ends, "cut off"]


async def whole(session: aiohttp.ClientSession, url: str, num_tokens: int) -> list[str]:
    async with session.post(f"{url}{CHAT}", json=chat(num_tokens)) as response:
        if response.status != 200:
            return [f"HTTP {response.status}"]
        return ends_of(await response.json())


async def over_socket(session: aiohttp.ClientSession, url: str, num_tokens: int) -> list[str]:
    """Reads on for a moment after the end, or until the server says goodbye."""
    ends = []
    create = {"type": "response.create", "input": "Tell me of many numbers.",
              "max_output_tokens": num_tokens, "ignore_eos": True}  # fmt: skip
    async with session.ws_connect(f"{url}{RESPONSES}", max_msg_size=0) as socket:
        await socket.send_json(create)
        async for event in events_of(socket):
            if event["type"] == "error":
                ends.append(str(event["error"]["message"]))
            elif event["type"] in ("response.completed", "response.incomplete", "response.failed"):
                ends.append(reason_of(event["response"]))
            if ends:
                break
        with suppress(TimeoutError):  # told once: nothing may follow
            async with asyncio.timeout(AFTER_S):
                ends += [f"{event['type']} after the end" async for event in events_of(socket)]
    return ends


async def events_of(socket: aiohttp.ClientWebSocketResponse) -> AsyncIterator[dict[str, Any]]:
    async for message in socket:
        if message.type is aiohttp.WSMsgType.TEXT:
            yield json.loads(message.data)


def reason_of(response: dict[str, Any]) -> str:
    """In the words of chat completions."""
    reason = (response.get("incomplete_details") or {"reason": response["status"]})["reason"]
    return {"max_output_tokens": "length", "server_shutdown": "abort"}.get(reason, str(reason))


def chat(num_tokens: int) -> dict[str, Any]:
    messages = [{"role": "user", "content": "Tell me of many numbers."}]
    return {"messages": messages, "max_tokens": num_tokens, "ignore_eos": True}


KINDS = (sse, over_socket, whole)


def num_tokens_of(number: int) -> int:
    """Every tenth has more than can be made by any deadline."""
    if number % 10 == 9:
        return ENDLESS_TOKENS
    return LEAST_TOKENS + number * 7 % (MOST_TOKENS - LEAST_TOKENS + 1)


async def client(session: aiohttp.ClientSession, url: str, number: int, seen: Seen) -> None:
    kind = KINDS[number % len(KINDS)]
    try:
        ends = await kind(session, url, num_tokens_of(number))
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        ends = [f"cut off: {type(error).__name__}"]
    told = " and ".join(ends) or "cut off"
    if told not in ("length", "abort"):
        seen.wrong[f"{kind.__name__}: {told}"] += 1
    elif seen.signal_s:
        seen.ends.append((told, time.monotonic()))
    else:
        seen.before += 1


async def accepted(session: aiohttp.ClientSession, url: str, num: int) -> None:
    """Until the server has taken all of them, and some have ended."""
    async with asyncio.timeout(BEGIN_S):
        while True:
            now = await metrics(session, url)
            held = now["vllm:num_requests_running"] + now["vllm:num_requests_waiting"]
            ended = sum(now[name] for name in now if name.startswith(ENDED))
            if ended >= ENDED_SHARE * num and held + ended >= num:
                return
            await asyncio.sleep(LOOK_S)


async def newcomers(session: aiohttp.ClientSession, url: str, seen: Seen) -> None:
    """Come until nobody listens any more, each on a connection of its own."""
    await until_ready(session, url, False, seen.signal_s + BEGIN_S)
    with suppress(aiohttp.ClientError):
        while True:
            for body in (chat(8), chat(8) | {"stream": True}):
                async with session.post(f"{url}{CHAT}", json=body) as response:
                    await response.read()
                    wait_s = float(response.headers.get("Retry-After", 0))
                    seen.refused[refusal(response.status, wait_s)] += 1
            async with session.ws_connect(f"{url}{RESPONSES}") as socket:
                await socket.send_json({"type": "response.create", "input": "hi"})
                async for event in events_of(socket):
                    headers = event.get("error", {}).get("headers", {})
                    wait_s = float(headers.get("Retry-After", 0))
                    seen.refused[refusal(event.get("status"), wait_s)] += 1
                    break
            await asyncio.sleep(EACH_S)


def refusal(status: int | None, wait_s: float) -> str:
    return f"{status}, {'with' if wait_s > 0 else 'without'} Retry-After"


async def drained(server: Serving, args: argparse.Namespace) -> Seen:
    seen = Seen()
    async with http() as session:
        asked = [client(session, server.url, each, seen) for each in range(args.streams)]
        clients = asyncio.gather(*asked)
        await accepted(session, server.url, args.streams)
        seen.signal_s = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        others = asyncio.create_task(newcomers(session, server.url, seen))
        waited = asyncio.to_thread(server.process.wait, args.deadline + 4 * LATE_S)
        with suppress(Exception):  # it has not ended: no status
            seen.exit_status = await waited
        seen.exit_s = time.monotonic() - seen.signal_s
        if seen.exit_status is None:
            clients.cancel()
            others.cancel()
        await asyncio.gather(clients, others, return_exceptions=True)
    return seen


async def run(args: argparse.Namespace) -> dict[str, Any]:
    flags = ("--drain-timeout-s", str(args.deadline))
    async with serving(*flags, extra=args.server_flags) as server:
        meter = LoadMeter([server.pid])
        seen = await drained(server, args)
        load = meter.read().as_dict()
    in_time_s = [ended - seen.signal_s for how, ended in seen.ends if how == "length"]
    aborted_s = [ended - seen.signal_s for how, ended in seen.ends if how == "abort"]
    early = [after_s for after_s in aborted_s if after_s < args.deadline - EARLY_S]
    result = {
        "record": "drain",
        "machine": describe(),
        "server_flags": args.server_flags,
        "streams": args.streams,
        "deadline_s": args.deadline,
        "finished_before": seen.before,
        "finished": len(in_time_s),
        "told": len(aborted_s),
        "told_early": len(early),
        "cut_off": sum(num for words, num in seen.wrong.items() if "cut off" in words),
        "wrong": dict(seen.wrong),
        "newcomers": dict(seen.refused),
        "finished_s": percentiles(in_time_s, scale=1) if in_time_s else {},
        "told_s": percentiles(aborted_s, scale=1) if aborted_s else {},
        "exit_status": seen.exit_status,
        "exit_s": round(seen.exit_s, 2),
        "load": load,
    }
    return result | {"passed": holds(result)}


def holds(result: dict[str, Any]) -> bool:
    ended = result["finished_before"] + result["finished"] + result["told"]
    is_told_once = ended == result["streams"] and not (result["wrong"] or result["told_early"])
    is_refused = set(result["newcomers"]) == {refusal(503, 1)}
    is_gone = result["exit_status"] == 0 and result["exit_s"] < result["deadline_s"] + LATE_S
    return is_told_once and is_refused and is_gone


def report(result: dict[str, Any]) -> None:
    print(
        f"{result['streams']} answers, a deadline of {result['deadline_s']:g} s: "
        f"{result['finished_before']} had finished, {result['finished']} finished in time, "
        f"{result['told']} were told at the deadline, {result['told_early']} before it, "
        f"{result['cut_off']} were cut off"
    )
    for name in ("wrong", "newcomers"):
        for words, num in result[name].items():
            print(f"  {name}: {num} x {words}")
    for name in ("finished_s", "told_s"):
        print(f"  {name:10} " + ", ".join(f"{k} {v:.3g}" for k, v in result[name].items()))
    print(f"  exit status {result['exit_status']} after {result['exit_s']} s")


def main() -> int:
    ap = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    ap.add_argument("--streams", type=int, default=100)
    ap.add_argument("--deadline", type=float, default=30.0, help="seconds after SIGTERM")
    ap.add_argument("--server-flags", default="", help="more of them, in one word")
    ap.add_argument("--json", help="append the result here, one line")
    args = ap.parse_args()
    result = asyncio.run(run(args))
    report(result)
    if args.json:
        with Path(args.json).open("a") as file:
            file.write(json.dumps(result) + "\n")
    return 0 if result["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
