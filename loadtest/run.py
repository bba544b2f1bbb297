#!/usr/bin/env python3
"""Runs a scenario without locust's web page, against a server of its own or HOST; `make loadtest`.

Ends with what locust ends with: 1 where there was an error. More options go to locust."""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "bench"))

from serving import serving  # noqa: E402  of bench/

SCENARIOS = ("chat", "sse", "sockets", "interactive", "leaving", "nonsense", "mixed")


async def locust(host: str, scenario: str, options: list[str]) -> int:
    command = ["-m", "locust", "-f", str(HERE / f"{scenario}.py"), "--headless", "--only-summary"]
    process = await asyncio.create_subprocess_exec(
        sys.executable, *command, "--host", host.rstrip("/"), *options
    )
    try:
        return await process.wait()
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()


async def run(args: argparse.Namespace, options: list[str]) -> int:
    if args.host:
        return await locust(args.host, args.scenario, options)
    async with serving(extra=args.server_flags) as server:
        return await locust(server.url, args.scenario, options)


def main() -> int:
    ap = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    ap.add_argument("--scenario", default="mixed", choices=SCENARIOS, help="a file here")
    ap.add_argument("--host", default="", help="a server that runs; default: one of its own")
    ap.add_argument("--server-flags", default="", help="of that, in one word")
    args, options = ap.parse_known_args()
    defaults = {"--users": "8", "--spawn-rate": "4", "--run-time": "60s", "--stop-timeout": "60"}
    options = [word for pair in defaults.items() for word in pair] + options  # the last one counts
    return asyncio.run(run(args, options))


if __name__ == "__main__":
    sys.exit(main())
