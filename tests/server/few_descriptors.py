"""A server in a process with few file descriptors: python -m … SOFT HARD SPARE WARN_EVERY_S. Says
its port, and at its end what the soft limit has become."""

from __future__ import annotations

import asyncio
import resource
import sys

import uvloop
from aiohttp import web

from lmserve.edge import connections, descriptors
from lmserve.edge.connections import EdgeLimits, EdgeRunner, EdgeSite
from lmserve.edge.listen import bind


def say(number: int) -> None:
    sys.stdout.write(f"{number}\n")
    sys.stdout.flush()


async def health(request: web.Request) -> web.Response:
    return web.json_response({})


async def main() -> None:
    app = web.Application()
    app.router.add_get("/health", health)
    runner = EdgeRunner(app, EdgeLimits(1000, 600.0, 600.0))
    await runner.setup()
    listener = bind("127.0.0.1", 0)
    await EdgeSite(runner, listener, backlog=1024).start()
    say(listener.getsockname()[1])
    await asyncio.to_thread(sys.stdin.read)  # until the test lets go
    await runner.cleanup()


if __name__ == "__main__":
    soft, hard, spare = map(int, sys.argv[1:4])
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    descriptors.SPARE = spare
    connections.ACCEPT_PAUSE_S, connections.WARN_EVERY_S = 0.01, float(sys.argv[4])
    uvloop.run(main())
    say(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
