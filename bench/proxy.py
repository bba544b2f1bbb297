#!/usr/bin/env python3
"""The distributor: what it adds to the first token, and what a streamed chunk costs it.

    .venv/bin/python bench/proxy.py --rate 20 --streams 32 --tokens 256 --pairs 5

In turn, the same requests go directly to a server with a mock engine, through `lmserve serve
proxy`, and through the shortest byte pump aiohttp can be (30 lines, below). First short ones, with
the mock at full speed: the median time to the first chunk. Then streams at a fixed pace: the CPU
time that distributor and pump use for a chunk (/proc), with their ratio. What is wanted: 3 ms
added at most, and a ratio of 1.3 at most.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from streams import HEAD, Server, request_body

WANTED_MS, WANTED_RATIO = 3.0, 1.3
PUMPED = ("Content-Type", "Cache-Control", "X-Accel-Buffering", "X-Request-Id")


def bare_pump(node: str) -> None:
    """Passes everything on to one node; no more than that."""
    import uvloop
    from aiohttp import ClientSession, ClientTimeout, TCPConnector, web

    async def main() -> None:
        session = ClientSession(
            connector=TCPConnector(limit=0), timeout=ClientTimeout(), auto_decompress=False
        )

        async def handler(request: web.Request) -> web.StreamResponse:
            async with session.request(
                request.method,
                node + request.path_qs,
                data=await request.read(),
                headers={"Content-Type": "application/json"},
            ) as answer:
                headers = {name: value for name, value in answer.headers.items() if name in PUMPED}
                response = web.StreamResponse(status=answer.status, headers=headers)
                await response.prepare(request)
                async for data in answer.content.iter_any():
                    await response.write(data)
                await response.write_eof()
                return response

        app = web.Application(client_max_size=2**26)
        app.router.add_route("*", "/{tail:.*}", handler)
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, backlog=1024).start()
        print(f"http://127.0.0.1:{runner.addresses[0][1]}", flush=True)
        await asyncio.Event().wait()

    uvloop.run(main())


@dataclass
class Measured:
    """One way to the node, over all rounds."""

    server: Server
    ttft_ms: list[float] = field(default_factory=list)  # of every request
    cpu_us: list[float] = field(default_factory=list)  # a chunk, of every round

    async def round(self, num_requests: int, tokens: int, apart_s: float) -> None:
        """Requests begin evenly, whether or not the earlier have ended."""
        body = request_body(tokens)
        cpu = self.server.cpu_s()
        tasks = []
        for _ in range(num_requests):
            tasks.append(asyncio.create_task(self._stream(body)))
            await asyncio.sleep(apart_s)
        counts = await asyncio.wait_for(asyncio.gather(*tasks), 300)
        if min(counts) < tokens:  # an error is quickly told
            raise SystemExit(f"an answer had {min(counts)} events for {tokens} tokens")
        self.cpu_us.append((self.server.cpu_s() - cpu) / sum(counts) * 1e6)

    async def _stream(self, body: bytes) -> int:
        """Reads an answer to its end; gives the number of its events."""
        began, num_events = time.perf_counter(), 0
        reader, writer = await asyncio.open_connection("127.0.0.1", self.server.port)
        writer.write(HEAD.format(path="/v1/chat/completions", length=len(body)).encode() + body)
        while data := await reader.read(1 << 18):
            if not num_events and b"data: " in data:
                self.ttft_ms.append((time.perf_counter() - began) * 1000)
            num_events += data.count(b"data: ")
        writer.close()
        return num_events


@contextmanager
def three_ways(tokens_s: float) -> Iterator[tuple[Measured, Measured, Measured]]:
    """A node, a distributor before it, and a pump before it."""
    lmserve = [sys.executable, "-m", "lmserve", "serve"]
    quiet = ["--server-port", "0", "--log-level", "warning"]
    mock = ["api_server", "--engine", "mock", "--mock-tokens-s", str(tokens_s)]
    with ExitStack() as stack:

        def start(command: list[str]) -> Measured:
            server = Server(command)
            stack.callback(server.close)
            return Measured(server)

        direct = start([*lmserve, *mock, *quiet])
        url = f"http://127.0.0.1:{direct.server.port}"
        proxy = start([*lmserve, "proxy", "--node", url, *quiet])
        yield direct, proxy, start([sys.executable, __file__, "--pump", url])


async def rounds(
    ways: Sequence[Measured], pairs: int, num_requests: int, tokens: int, apart_s: float
) -> None:
    for way in ways:  # what is done only once is not measured
        await way.round(4, 8, 0.0)
        way.ttft_ms.clear()
        way.cpu_us.clear()
    for number in range(pairs):
        for way in ways if number % 2 else ways[::-1]:
            await way.round(num_requests, tokens, apart_s)


async def run(args: argparse.Namespace) -> dict[str, object]:
    mid = statistics.median
    with three_ways(0.0) as ways:
        await rounds(ways, args.pairs, args.requests, 2, 1 / args.rate)
        direct, proxy, pump = (mid(way.ttft_ms) for way in ways)
    with three_ways(args.tokens_s) as ways:
        apart_s = args.tokens / args.tokens_s / args.streams
        await rounds(ways[1:], args.pairs, args.streams, args.tokens, apart_s)
        ratios = [a / b for a, b in zip(ways[1].cpu_us, ways[2].cpu_us, strict=True)]
        costs = [mid(way.cpu_us) for way in ways[1:]]
    print(f"{'':14}{'TTFT ms':>10}{'added ms':>10}{'CPU us a chunk':>16}")
    print(f"{'direct':14}{direct:10.2f}")
    print(f"{'lmserve proxy':14}{proxy:10.2f}{proxy - direct:10.2f}{costs[0]:16.1f}")
    print(f"{'bare pump':14}{pump:10.2f}{pump - direct:10.2f}{costs[1]:16.1f}")
    return {
        "rate": args.rate,
        "streams": args.streams,
        "tokens": args.tokens,
        "tokens_s": args.tokens_s,
        "added_ttft_ms": round(proxy - direct, 2),
        "added_ttft_ok": proxy - direct <= WANTED_MS,
        "cpu_ratios": [round(ratio, 2) for ratio in ratios],
        "cpu_ratio": round(mid(ratios), 3),
        "cpu_ratio_ok": mid(ratios) <= WANTED_RATIO,
    }


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    ap.add_argument("--rate", type=float, default=20.0, help="short requests a second")
    ap.add_argument("--requests", type=int, default=100, help="short requests a round")
    ap.add_argument("--streams", type=int, default=32)
    ap.add_argument("--tokens", type=int, default=256)
    ap.add_argument("--tokens-s", type=float, default=50.0)
    ap.add_argument("--pairs", type=int, default=5)
    ap.add_argument("--pump", default="", help=argparse.SUPPRESS)
    args = ap.parse_args()
    if args.pump:
        bare_pump(args.pump)
    else:
        print(json.dumps(asyncio.run(run(args)), indent=1))


if __name__ == "__main__":
    main()
