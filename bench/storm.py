#!/usr/bin/env python3
"""Many streams at once, from clients that honour Retry-After: all must finish.

    .venv/bin/python bench/storm.py --streams 500 --json storm.json
    .venv/bin/python bench/storm.py --streams 500 --server-flags '--max-queued-requests 100'

Starts a server of its own with the default model. All streams are asked for at the same moment,
each for `--tokens` tokens. Who gets 429 or 503 waits for as long as Retry-After says, and a random
part of a second more, and asks again. Ends with 1 where one does not finish, or has not all tokens.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import aiohttp
from serving import http, serving

from lmserve.bench.figures import percentiles
from lmserve.bench.machine import LoadMeter, describe

BUSY = (429, 503)
MAX_TRIES = 1000


@dataclass(slots=True)
class Stream:
    num_tries: int = 0
    num_tokens: int = 0
    ttft_s: float = 0.0  # from the first try
    e2e_s: float = 0.0
    waited_s: float = 0.0  # as Retry-After said
    error: str = ""


async def ask(session: aiohttp.ClientSession, url: str, number: int, num_tokens: int) -> Stream:
    stream, source, began = Stream(), random.Random(number), time.perf_counter()
    body = {"messages": [{"role": "user", "content": f"Tell me of the number {number}."}],
            "max_tokens": num_tokens, "ignore_eos": True, "stream": True,
            "stream_options": {"include_usage": True}}  # fmt: skip
    while not stream.error and not stream.num_tokens and stream.num_tries < MAX_TRIES:
        stream.num_tries += 1
        try:
            async with session.post(f"{url}/v1/chat/completions", json=body) as response:
                if response.status == 200:
                    await _read(response, stream, began)
                elif response.status in BUSY and "Retry-After" in response.headers:
                    wait_s = float(response.headers["Retry-After"])
                    stream.waited_s += wait_s
                    await asyncio.sleep(wait_s + source.random())
                else:
                    stream.error = f"HTTP {response.status}: {(await response.text())[:200]}"
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            stream.error = f"{type(error).__name__}: {error}"
    stream.e2e_s = time.perf_counter() - began
    if not stream.error and stream.num_tokens != num_tokens:
        stream.error = f"{stream.num_tokens} tokens after {stream.num_tries} tries"
    return stream


async def _read(response: aiohttp.ClientResponse, stream: Stream, began: float) -> None:
    async for line in response.content:
        if not line.startswith(b"data: {"):
            continue
        event = json.loads(line[6:])
        if event.get("choices") and not stream.ttft_s:
            stream.ttft_s = time.perf_counter() - began
        if event.get("usage"):
            stream.num_tokens = event["usage"]["completion_tokens"]
        if "error" in event:
            stream.error = str(event["error"])
            return
    if not stream.num_tokens:
        stream.error = "the stream broke off"


async def run(args: argparse.Namespace) -> dict:
    async with serving(extra=args.server_flags) as server, http() as session:
        await ask(session, server.url, -1, 4)
        before = await server.held(session)
        meter, began = LoadMeter([server.pid]), time.perf_counter()
        tasks = (ask(session, server.url, each, args.tokens) for each in range(args.streams))
        streams = await asyncio.gather(*tasks)
        wall_s = time.perf_counter() - began
        settled_s, _ = await server.settled(session, before, 10.0)
    done = [stream for stream in streams if not stream.error]
    return {
        "record": "storm",
        "machine": describe(),
        "server_flags": args.server_flags,
        "streams": args.streams,
        "tokens": args.tokens,
        "finished": len(done),
        "errors": Counter(stream.error for stream in streams if stream.error),
        "wall_s": round(wall_s, 1),
        "tok_s": round(sum(stream.num_tokens for stream in done) / wall_s, 1),
        "refused": sum(stream.num_tries - 1 for stream in streams),
        "tries": percentiles([stream.num_tries for stream in streams], scale=1),
        "ttft_s": percentiles([stream.ttft_s for stream in done], scale=1),
        "e2e_s": percentiles([stream.e2e_s for stream in done], scale=1),
        "settled_s": settled_s,
        "load": meter.read().as_dict(),
        "passed": len(done) == args.streams,
    }


def report(result: dict) -> None:
    print(
        f"{result['finished']} of {result['streams']} streams of {result['tokens']} tokens "
        f"finished in {result['wall_s']} s, {result['tok_s']} tokens/s; {result['refused']} were "
        "refused, and came back"
    )
    for name in ("tries", "ttft_s", "e2e_s"):
        print(f"  {name:7} " + ", ".join(f"{k} {v:.3g}" for k, v in result[name].items()))
    for error, num in result["errors"].items():
        print(f"  {num} x {error}")


def main() -> int:
    ap = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    ap.add_argument("--streams", type=int, default=500)
    ap.add_argument("--tokens", type=int, default=32)
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
