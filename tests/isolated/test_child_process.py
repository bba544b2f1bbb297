"""A server process of its own: what it imports, and what it leaves behind when it is killed."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

CORES = Path(__file__).parents[1] / "bridge"

SERVER = """
    import asyncio, os, sys
    from lmserve.bridge.child import ChildEngine
    from lmserve.bridge.select import make_handle
    from lmserve.settings import EngineSettings

    async def main():
        assert isinstance(make_handle(EngineSettings()), ChildEngine)
        engine = ChildEngine(EngineSettings(model=sys.argv[1]), "scripted_core:ScriptedCore")
        await engine.start()
        if sys.argv[1] == "waits":
            while engine.health().reason != "reading the model":
                await engine.changed()
        else:
            await engine.wait_ready()
        heavy = {"torch", "transformers", "numpy"} & set(sys.modules)
        sys.stdout.write(f"{sorted(heavy)} {engine._process.pid}\\n")
        sys.stdout.flush()
        await asyncio.to_thread(sys.stdin.read)
        await engine.close()

    asyncio.run(main())
"""


def start_server(model: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SERVER), model],
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(CORES), str(CORES.parents[1])))},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def wait_gone(pid_fd: int) -> bool:
    """Waits for the end of a process that is not ours to reap."""
    readable, _, _ = select.select([pid_fd], [], [], 30.0)
    return bool(readable)


@pytest.mark.parametrize("model", ["well", "waits"])
def test_the_child_does_not_outlive_a_killed_server(model: str) -> None:
    with start_server(model) as server:
        assert server.stdout is not None
        heavy, pid = server.stdout.readline().rsplit(" ", 1)
        assert heavy == "[]"
        pid_fd = os.pidfd_open(int(pid))
        try:
            server.kill()
            assert wait_gone(pid_fd)
        finally:
            os.close(pid_fd)


def test_a_server_that_closes_leaves_nothing() -> None:
    with start_server("well") as server:
        assert server.stdout is not None
        pid = int(server.stdout.readline().split()[-1])
        assert server.stdin is not None
        server.stdin.close()
        assert server.wait(30) == 0
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
