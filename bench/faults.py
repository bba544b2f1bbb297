#!/usr/bin/env python3
"""kill -9 of the engine, again and again, under load: is it ready again soon, does each request
end once, does nobody have to lend a hand?

    .venv/bin/python bench/faults.py --seconds 120 --every 10

Starts a server of its own (the default model). Some clients stream answers one after the other,
and send nothing twice; every so often the engine is killed. Ends with 1 where it was not ready
again in time, too few requests completed, or one was not told its end exactly once.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import statistics
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from bench.serving import Serving, http, serving

LOOK_S = 0.02
END_S = 60.0


@dataclass
class Seen:
    """What the clients were told, and how long the engine was away."""

    ready_s: list[float] = field(default_factory=list)  # after each kill
    requests: Counter[str] = field(default_factory=Counter)  # by how they ended
    errors: Counter[str] = field(default_factory=Counter)  # by their message

    @property
    def completed_share(self) -> float:
        return self.requests["completed"] / max(1, self.requests.total())


def main() -> int:
    ap = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    ap.add_argument("--seconds", type=float, default=120.0)
    ap.add_argument("--every", type=float, default=10.0, help="seconds from one kill to the next")
    ap.add_argument("--clients", type=int, default=8)
    ap.add_argument("--max-tokens", type=int, default=32)
    ap.add_argument("--within", type=float, default=5.0, help="seconds to be ready again")
    ap.add_argument("--least", type=float, default=0.7, help="share of requests that complete")
    ap.add_argument("--flags", default="", help="more of the server's")
    ap.add_argument("--json", type=Path, help="where to write the figures, too")
    args = ap.parse_args()
    seen = asyncio.run(measure(args))
    print(table(seen, args))
    if args.json:
        figures = asdict(seen) | {
            "requests": dict(seen.requests),
            "errors": dict(seen.errors),
            "completed_share": seen.completed_share,
        }
        args.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 0 if holds(seen, args) else 1


def holds(seen: Seen, args: argparse.Namespace) -> bool:
    told_once = set(seen.requests) <= {"completed", "failed", "refused"}
    in_time = bool(seen.ready_s) and max(seen.ready_s) <= args.within
    return told_once and in_time and seen.completed_share >= args.least


def table(seen: Seen, args: argparse.Namespace) -> str:
    ready_s = seen.ready_s or [float("nan")]
    rows = {
        "kills": str(len(seen.ready_s)),
        "ready again, s": f"median {statistics.median(ready_s):.2f}, most {max(ready_s):.2f}",
        "requests": str(seen.requests.total()),
        **{name: str(num) for name, num in seen.requests.most_common()},
        "completed, %": f"{100 * seen.completed_share:.1f}",
        "load average": f"{os.getloadavg()[0]:.1f} on {os.cpu_count()} cores",
        "holds": "yes" if holds(seen, args) else "no",
    }
    lines = [f"| {name} | {value} |" for name, value in rows.items()]
    told = [f"  {num} x {message}" for message, num in seen.errors.most_common(5)]
    return "\n".join(["| | |", "| --- | --- |", *lines, *told])


async def measure(args: argparse.Namespace) -> Seen:
    seen = Seen()
    async with serving(extra=args.flags) as server, http() as session:
        until = time.monotonic() + args.seconds
        clients = [
            asyncio.create_task(client(session, server.url, args.max_tokens, until, seen))
            for _ in range(args.clients)
        ]
        await kills(session, server, args.every, until, seen)
        await asyncio.gather(*clients)
    return seen


async def kills(
    session: aiohttp.ClientSession, server: Serving, every_s: float, until: float, seen: Seen
) -> None:
    while time.monotonic() + every_s < until:
        await asyncio.sleep(every_s)
        if (engine := server.engine_pid) is None:
            raise SystemExit("the server has no engine process")
        began = time.monotonic()
        os.kill(engine, signal.SIGKILL)
        for wanted in (False, True):  # its death is noticed, the next is there
            await until_ready(session, server.url, wanted, began + END_S)
        seen.ready_s.append(round(time.monotonic() - began, 3))


async def until_ready(session: aiohttp.ClientSession, url: str, wanted: bool, until: float) -> None:
    while time.monotonic() < until:
        async with session.get(f"{url}/health") as response:
            if (response.status == 200) == wanted:
                return
        await asyncio.sleep(LOOK_S)
    raise SystemExit(f"not so in {END_S:.0f} s: ready {wanted}")


async def client(
    session: aiohttp.ClientSession, url: str, max_tokens: int, until: float, seen: Seen
) -> None:
    number = 0
    while time.monotonic() < until:
        number += 1
        body = {
            "messages": [{"role": "user", "content": f"Tell me of the number {number}."}],
            "max_tokens": max_tokens,
            "stream": True,
        }
        how, message, pause_s = await ask(session, url, body)
        seen.requests[how] += 1
        if message:
            seen.errors[message] += 1
        await asyncio.sleep(pause_s)


async def ask(
    session: aiohttp.ClientSession, url: str, body: dict[str, Any]
) -> tuple[str, str, float]:
    """How it ended, what was told where it failed, and when to come again."""
    ends = []
    try:
        async with session.post(f"{url}/v1/chat/completions", json=body) as response:
            if response.status != 200:
                error = (await response.json())["error"]["message"]
                how = "refused" if response.status in (429, 503) else "failed"
                return how, error, float(response.headers.get("Retry-After", 0))
            async for line in response.content:
                if line.startswith(b"data: {"):
                    ends += ends_of(json.loads(line[6:]))
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        return f"cut off: {type(error).__name__}", str(error), 1.0
    if len(ends) != 1:
        return f"told {len(ends)} times", "", 0.0
    return ("completed", "", 0.0) if ends[0] in ("stop", "length") else ("failed", ends[0], 0.0)


def ends_of(event: dict[str, Any]) -> list[str]:
    """The ends that this event tells of: a reason, or an error's message."""
    if "error" in event:
        return [event["error"]["message"]]
    reasons = [choice.get("finish_reason") for choice in event.get("choices", ())]
    return [reason for reason in reasons if reason]


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
