"""A real server of a measurement's own, and what it holds: by its metrics, and by /proc."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from lmserve.bench.processes import engine_of, num_descriptors, private_mib, rss_mib

LMSERVE = Path(sys.executable).with_name("lmserve")
READY_S, END_S, LOOK_S = 180.0, 40.0, 0.05
STATES = ("free", "cached", "pinned", "held")


@dataclass(frozen=True, slots=True)
class Held:
    """What the server and its engine hold."""

    running: int
    waiting: int
    blocks: dict[str, int]  # by state
    tasks: int
    descriptors: int  # of the server process
    websockets: int


NOT_BACK: dict[str, Callable[[Held, Held], bool]] = {
    "requests": lambda held, _: bool(held.running or held.waiting),
    "blocks": lambda held, _: bool(held.blocks["held"]),
    "websockets": lambda held, before: held.websockets > before.websockets,
    "descriptors": lambda held, before: held.descriptors > before.descriptors,
    "tasks": lambda held, before: held.tasks > before.tasks,
}


@dataclass(frozen=True, slots=True)
class Memory:
    """Of one process."""

    rss_mib: float
    private_mib: float


@dataclass(frozen=True, slots=True)
class Serving:
    url: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def engine_pid(self) -> int | None:
        return engine_of(self.pid)

    def memory(self) -> dict[str, Memory]:
        pids = {"server": self.pid, "engine": self.engine_pid}
        return {
            name: Memory(rss_mib(pid), private_mib(pid))
            for name, pid in pids.items()
            if pid is not None
        }

    async def held(self, session: aiohttp.ClientSession) -> Held:
        seen = await metrics(session, self.url)
        return Held(
            running=int(seen["vllm:num_requests_running"]),
            waiting=int(seen["vllm:num_requests_waiting"]),
            blocks={state: int(seen[f"lmserve:kv_blocks/{state}"]) for state in STATES},
            tasks=int(seen["lmserve:tasks"]),
            descriptors=num_descriptors(self.pid),
            websockets=int(seen["lmserve:websockets"]),
        )

    async def settled(
        self, session: aiohttp.ClientSession, before: Held, limit_s: float
    ) -> tuple[dict[str, float], Held]:
        """Waits until nothing runs, waits or is held, and no descriptor or task is more than
        before. Gives the seconds after which each was so for good, or infinity, and what is held
        then."""
        began, since_s = time.perf_counter(), dict.fromkeys(NOT_BACK, 0.0)
        while True:
            held = await self.held(session)
            now_s = time.perf_counter() - began
            late = [name for name, is_more in NOT_BACK.items() if is_more(held, before)]
            if not late or now_s > limit_s:
                return {n: math.inf if n in late else round(s, 3) for n, s in since_s.items()}, held
            since_s |= dict.fromkeys(late, now_s)
            await asyncio.sleep(LOOK_S)


@contextlib.asynccontextmanager
async def serving(*flags: str, extra: str = "", data_dir: str = "") -> AsyncIterator[Serving]:
    """On a free port, with a data directory of its own; ready, until it is left. `extra`: more
    flags, as they are typed."""
    with tempfile.TemporaryDirectory(prefix="lmserve-bench-") as folder:
        port, log = free_port(), Path(folder, "log")
        flags = ("--data-dir", data_dir or f"{folder}/data", *flags, *shlex.split(extra))
        process = _start(port, flags, log)
        url = f"http://127.0.0.1:{port}"
        own = asyncio.current_task()
        assert own is not None
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, own.cancel)  # leaves no server behind
        try:
            await _ready(url, process, log)
            yield Serving(url, process, log)
        finally:
            loop.remove_signal_handler(signal.SIGTERM)
            await asyncio.to_thread(_end, process)


@contextlib.asynccontextmanager
async def http(timeout_s: float = 600.0) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(
        timeout=aiohttp.ClientTimeout(total=timeout_s),
        connector=aiohttp.TCPConnector(limit=0),
    ) as session:
        yield session


async def metrics(session: aiohttp.ClientSession, url: str) -> dict[str, float]:
    """By name; with more labels than the model's, `name/value/…`."""
    async with session.get(f"{url}/metrics") as response:
        response.raise_for_status()
        text = await response.text()
    seen = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            values = [value for name, value in sample.labels.items() if name != "model_name"]
            seen["/".join([sample.name, *values])] = sample.value
    return seen


def as_dict(value: Held | Memory) -> dict[str, object]:
    return asdict(value)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _start(port: int, flags: tuple[str, ...], log: Path) -> subprocess.Popen[bytes]:
    command = [str(LMSERVE), "serve", "api_server", "--server-port", str(port)]
    with log.open("wb") as file:
        return subprocess.Popen(
            [*command, "--log-level", "warning", *flags],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,  # a Ctrl-C is for the measurement, which ends the server
        )


async def _ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    async with http(10) as session, asyncio.timeout(READY_S):
        while process.poll() is None:
            with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                async with session.get(f"{url}/health") as response:
                    if response.status == 200:
                        return
            await asyncio.sleep(LOOK_S)
    words = await asyncio.to_thread(log.read_text)
    raise SystemExit(f"the server ended with status {process.returncode}:\n{words}")


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(END_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # what it left behind, itself if need be
    process.wait()
