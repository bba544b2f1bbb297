"""A server process of its own: what it imports, and what it leaves behind when it is killed."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import textwrap
import urllib.request
from pathlib import Path

import pytest

from lmserve.bridge import assets

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


SERVED = """
    import sys
    from lmserve.bridge import assets
    from lmserve.bridge.child import ChildEngine
    from lmserve.server import lifecycle
    from lmserve.settings import ServerSettings, Settings

    made = []

    def make(settings):
        made.append(ChildEngine(settings, "scripted_core:ScriptedCore"))
        return made[0]

    def announce(text):
        pid = made[0].info.pid if text.startswith("ready") else 0
        sys.stdout.write(f"{text.split()[0]} {text.split()[1]} {pid}\\n")
        sys.stdout.flush()

    lifecycle.make_handle = make
    server = ServerSettings(server_port=0, model_name="scripted", drain_timeout_s=40.0)
    lifecycle.serve(Settings(server=server), announce)
"""


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join((str(CORES), str(CORES.parents[1])))}


def start_server(model: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SERVER), model],
        env=environment(),
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


def test_a_signal_to_both_lets_running_streams_finish(tmp_path: Path) -> None:
    env = environment() | {"SCRIPTED_TOKENIZER": str(assets.write_assets(tmp_path))}
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SERVED)], env=env, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        try:
            url = server.stdout.readline().split()[1]
            child = int(server.stdout.readline().split()[-1])
            body = {"prompt": "go", "stream": True, "max_tokens": 8000, "ignore_eos": True}
            asked = urllib.request.Request(f"{url}/v1/completions", json.dumps(body).encode())
            asked.add_header("Content-Type", "application/json")
            with urllib.request.urlopen(asked) as answer:
                assert answer.readline().startswith(b"data: ")
                os.kill(child, signal.SIGSTOP)  # the answer is not over when they are told
                os.kill(server.pid, signal.SIGTERM)
                os.kill(child, signal.SIGTERM)
                assert server.stdout.readline().startswith("stopping")
                os.kill(child, signal.SIGCONT)
                rest = answer.read()
            assert b'"finish_reason":"length"' in rest
            assert rest.endswith(b"data: [DONE]\n\n")
            assert server.wait(30) == 0
        finally:
            server.kill()
