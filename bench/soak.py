#!/usr/bin/env python3
"""A server under mixed load for as long as you say: does it keep what it should have let go?

    .venv/bin/python bench/soak.py --minutes 45 --out soak
    .venv/bin/python bench/soak.py --out soak --again        # the report anew, from its samples

Starts a server of its own with the default model and a data directory of its own. `--clients` do at
random what soak_load.py has: whole answers, streams, conversations that are forked and deleted,
WebSockets, batches, and clients that leave at any moment or send nonsense. Every second a line goes
to OUT.jsonl: memory of both processes, KV blocks, tasks, descriptors, latency. At the end: OUT.png,
OUT.html, OUT.json, and whether memory grew after the warm-up (slope.py). Ends with 1 where it did,
where anything is still held, or where the server did to anybody what it should not.

The flags make room run out within the warm-up, and answers are short and many in its first half,
so that what is measured is a full house: 300 conversations at most, 50 batches, streams kept for
30 s, conversations warm for 60 s, 256 MiB on disk, and a KV cache of 12,288 tokens, of which every
block has been used soon.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import math
import statistics
import sys
import time
from dataclasses import asdict
from pathlib import Path

from serving import Serving, as_dict, http, serving
from soak_load import ACTIONS, ANSWER_S, Soaker
from soak_report import draw, is_bounded, page, slopes, verdict

from lmserve.bench.machine import LoadMeter, describe

FLAGS = (
    "--max-sessions=300", "--stream-keep-s=30", "--stream-grace-s=2", "--pin-s=60",
    "--spill-after-s=5", "--num-blocks=768", f"--spill-max-bytes={256 * 2**20}",
    "--max-batches=50",
)  # fmt: skip
SAMPLE_S, SETTLED_S = 1.0, 60.0
SHORT_TOKENS = 4


async def soak(args: argparse.Namespace) -> dict:
    async with serving(*FLAGS, extra=args.server_flags) as server, http() as watching:
        async with http() as session:
            await first_look(Soaker(session, server.url, 0))
        _, before = await server.settled(watching, await server.held(watching), 20.0)
        meter = LoadMeter([server.pid])
        async with http() as session:
            soaker = Soaker(session, server.url, args.seed)
            stopping = asyncio.Event()
            sampler = asyncio.create_task(sample(args, server, soaker, stopping))
            async with asyncio.TaskGroup() as tasks:
                for _ in range(args.clients):
                    tasks.create_task(soaker.client(stopping))
                tasks.create_task(short_first(soaker, args.warm_minutes * 30, stopping))
                await asyncio.wait([sampler], timeout=args.minutes * 60)
                stopping.set()
            await sampler
        settled_s, after = await server.settled(watching, before, SETTLED_S)
        log = await asyncio.to_thread(server.log.read_text)
    return {
        "record": "soak",
        "machine": describe(),
        "minutes": args.minutes,
        "clients": args.clients,
        "seed": args.seed,
        "done": dict(soaker.done),
        "errors": dict(soaker.errors),
        "before": as_dict(before),
        "after": as_dict(after),
        "settled_s": settled_s,
        "tracebacks": log.count("Traceback"),
        "load": meter.read().as_dict(),
    }


async def first_look(soaker: Soaker) -> None:
    """Everything happens once: caches, threads and files are there from here on."""
    for action in ACTIONS:
        try:
            async with asyncio.timeout(ANSWER_S):
                await action(soaker)
        except Exception as error:
            raise SystemExit(f"{action.__name__} of a quiet server: {error!r}") from error


async def short_first(soaker: Soaker, for_s: float, stopping: asyncio.Event) -> None:
    """What is bounded by its number is full soon."""
    usual, soaker.most_tokens = soaker.most_tokens, SHORT_TOKENS
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(stopping.wait(), for_s)
    soaker.most_tokens = usual


async def sample(
    args: argparse.Namespace, server: Serving, soaker: Soaker, stopping: asyncio.Event
) -> None:
    began = time.perf_counter()
    with Path(f"{args.out}.jsonl").open("w") as file:  # noqa: ASYNC230  one line a second
        async with http(30) as session:
            while not stopping.is_set():
                held = await server.held(session)
                memory = await asyncio.to_thread(server.memory)
                line = {
                    "t": round(time.perf_counter() - began, 2),
                    "memory": {name: as_dict(each) for name, each in memory.items()},
                    "held": as_dict(held),
                    "ttft_ms": median_ms(soaker.ttft_s),
                    "gap_ms": median_ms(soaker.gaps_s),
                    "done": soaker.done.total(),
                    "errors": soaker.errors.total(),
                }
                soaker.ttft_s.clear()
                soaker.gaps_s.clear()
                file.write(json.dumps(line) + "\n")
                file.flush()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stopping.wait(), SAMPLE_S)


def median_ms(values: list[float]) -> float:
    return round(statistics.median(values) * 1000, 1) if values else math.nan


def report(args: argparse.Namespace, result: dict) -> bool:
    lines = Path(f"{args.out}.jsonl").read_text().splitlines()
    samples = [json.loads(line) for line in lines]
    warm_s = args.warm_minutes * 60
    found = slopes(samples, warm_s, args.block_s)
    result |= {
        "warm_minutes": args.warm_minutes,
        "slopes_mib_per_hour": {name: asdict(each) for name, each in found.items()},
        "memory": {name: verdict(each) for name, each in found.items()},
    }
    after, before = result["after"], result["before"]
    let_go = not any(math.isinf(each) for each in result["settled_s"].values())
    result["passed"] = (
        is_bounded(found["both"]) and let_go and not result["errors"] and not result["tracebacks"]
    )
    svg = draw(samples, warm_s, Path(f"{args.out}.png"))
    Path(f"{args.out}.html").write_text(page(result, svg))
    Path(f"{args.out}.json").write_text(json.dumps(result, indent=1) + "\n")
    done = sum(result["done"].values())
    print(f"{args.minutes:g} minutes, {done} actions: {result['done']}")
    for name, text in result["memory"].items():
        print(f"  memory, {name:6}: {text}")
    print(f"  before: {before}\n  after:  {after}\n  as before after: {result['settled_s']}")
    print(f"  errors: {result['errors'] or 'none'}; tracebacks in the log: {result['tracebacks']}")
    print(f"  {args.out}.html, .png, .json, .jsonl: {'passed' if result['passed'] else 'FAILED'}")
    return bool(result["passed"])


def main() -> int:
    ap = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    ap.add_argument("--minutes", type=float, default=30.0)
    ap.add_argument("--warm-minutes", type=float, help="default: a third of it")
    ap.add_argument("--block-s", type=float, default=60.0, help="samples are averaged over it")
    ap.add_argument("--clients", type=int, default=12)
    ap.add_argument("--seed", type=int, default=1)
    ap.add_argument("--server-flags", default="", help="more of them, in one word")
    ap.add_argument("--out", default="soak", help="files are called this, and .jsonl and so on")
    ap.add_argument("--again", action="store_true", help="only the report, from what was sampled")
    args = ap.parse_args()
    if args.again:
        result = json.loads(Path(f"{args.out}.json").read_text())
        args.minutes = result["minutes"]
    if args.warm_minutes is None:
        args.warm_minutes = args.minutes / 3
    if not args.again:
        result = asyncio.run(soak(args))
        Path(f"{args.out}.json").write_text(json.dumps(result) + "\n")
    return 0 if report(args, result) else 1


if __name__ == "__main__":
    sys.exit(main())
