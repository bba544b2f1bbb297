"""A real engine behind a real server, what others have streamed from it, and how it was before.

The server runs as in production, on a loop and a thread of its own: what a test does never holds
it up. Ask what is inside with `await real.inside(…)`.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import re
import threading
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import orjson
import pytest
import uvloop
from aiohttp import web

from lmserve.bridge.child import ChildEngine
from lmserve.bridge.fake import FakeEngine
from lmserve.bridge.handle import EngineHandle
from lmserve.bridge.remote import RemoteEngine
from lmserve.messages import EngineStats
from lmserve.server import keys
from lmserve.server.lifecycle import Server, running_server
from lmserve.server.socket.sockets import SOCKETS
from lmserve.settings import (
    EngineSettings,
    ServerSettings,
    SessionSettings,
    Settings,
    StreamSettings,
)
from tests.e2e.conftest import make_model
from tests.hardening.doors import USER

T = TypeVar("T")

MORE_BYTES = 64 * 2**20  # resident, that a test may leave to caches and allocators
READY_S, SETTLED_S = 55.0, 20.0
SESSION_LEN, NUM_BLOCKS, BLOCK_SIZE = 1024, 192, 16

_CHANGES = re.compile(
    rb'"(id|created|cached_tokens|system_fingerprint)":("[a-z]+-[0-9a-f]{32}"|[0-9]+)'
)
_PROBABLE = {"return_token_ids": True, "max_tokens": 32, "ignore_eos": True}
_SURE = {"messages": [USER], "temperature": 0, "logprobs": True, "top_logprobs": 3, **_PROBABLE}
_DRAWN = {"prompt": "Once", "temperature": 1, "seed": 7, "logprobs": 3, **_PROBABLE}
_STREAM = {"stream": True, "stream_options": {"include_usage": True}}
NEIGHBOURS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("/v1/chat/completions", _SURE | _STREAM),
    ("/v1/completions", _DRAWN | _STREAM),
    ("/v1/chat/completions", _SURE),
)


@dataclass
class RealServer:
    """One that listens. `loop` is its own, in another thread."""

    url: str
    app: web.Application
    loop: asyncio.AbstractEventLoop
    alone: list[bytes] = field(default_factory=list)  # what its neighbours hear undisturbed

    @property
    def handle(self) -> EngineHandle:
        return self.app[keys.HANDLE]

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    async def inside(self, ask: Callable[[], Awaitable[T]]) -> T:
        """What this gives on the server's loop."""

        async def on_loop() -> T:
            return await ask()

        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(on_loop(), self.loop))

    async def stats(self) -> EngineStats:
        """The engine's own, as they are now. Raises where its blocks contradict each other."""
        handle = self.handle
        await self.inside(lambda: handle.control("check", 20.0))
        stats = EngineStats(**await self.inside(lambda: handle.control("stats", 20.0)))
        kinds = (stats.blocks_free, stats.blocks_cached, stats.blocks_pinned, stats.blocks_held)
        assert sum(kinds) == stats.blocks_total, stats
        return stats

    async def held(self) -> dict[str, int]:
        """What requests hold, in the engine and here; nothing of it while none runs."""
        stats, app = await self.stats(), self.app
        service = app[keys.SERVICE]
        return {
            "running": stats.num_running,
            "waiting": stats.num_waiting,
            "blocks": stats.blocks_held,
            "mailboxes": _num_mailboxes(self.handle),
            "requests": service.inflight,
            "tokens": service._admission.num_tokens,
            "generations": len(service._generations),
            "body bytes": app[keys.BODY_BYTES].num_bytes,
            "sockets": len(app[SOCKETS]._open),
        }

    async def tasks(self) -> Counter[str]:
        async def names() -> Counter[str]:
            coroutines = (task.get_coro() for task in asyncio.all_tasks())
            return Counter(getattr(each, "__qualname__", "?") for each in coroutines)

        return await self.inside(names)

    def descriptors(self) -> Counter[str]:
        """By kind; its own and its engine's."""
        info = self.handle.info
        found = Counter(_descriptors("self"))
        if info is not None:
            found.update(f"engine's {name}" for name in _descriptors(str(info.pid)))
        return found

    def resident_bytes(self) -> int:
        """Its own and its engine's."""
        info = self.handle.info
        return sum(map(_resident, ("self", *([] if info is None else [str(info.pid)]))))


@asynccontextmanager
async def as_before(real: RealServer, more_bytes: int = MORE_BYTES) -> AsyncIterator[None]:
    """After this all is as it was: nothing is held, no task or descriptor is more, and no memory
    but that."""
    await _settled(real, Counter())
    before, resident = real.descriptors() + await real.tasks(), real.resident_bytes()
    yield
    await _settled(real, before, resident + more_bytes)
    async with aiohttp.ClientSession(real.url) as client, client.get("/health") as health:
        assert health.status == 200, await health.text()


async def _settled(real: RealServer, before: Counter[str], most: int | None = None) -> None:
    """Waits for what was let go to end."""
    left: Counter[str] = Counter()
    try:
        async with asyncio.timeout(SETTLED_S):
            while True:
                left = Counter(await real.held())
                if most is not None:
                    left += await real.tasks() + real.descriptors() - before
                if not +left:
                    break
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"still there: {dict(+left)}") from None
    if most is not None:
        if real.resident_bytes() > most:
            gc.collect()  # which takes its time, and gives nothing back by itself
            ctypes.CDLL(None).malloc_trim(0)
        more = real.resident_bytes() - most
        assert more <= 0, f"{more / 2**20:.0f} MiB over what may be are resident"


@asynccontextmanager
async def neighbours(real: RealServer) -> AsyncIterator[None]:
    """Answers that others stream beside it are the same to the byte, log probabilities too."""
    if not real.alone:
        await hear(real.url)  # their prompts are cached from here on
        real.alone = await hear(real.url)
    async with beside(real.url, real.alone):
        yield


@asynccontextmanager
async def beside(url: str, alone: list[bytes]) -> AsyncIterator[None]:
    """What is heard there meanwhile is that."""
    stopping = asyncio.Event()

    async def others() -> None:
        while True:
            assert await hear(url) == alone
            if stopping.is_set():
                return

    task = asyncio.create_task(others())
    try:
        yield
    finally:
        stopping.set()
        await task


async def hear(url: str) -> list[bytes]:
    """The answers of all neighbours."""
    timeout = aiohttp.ClientTimeout(total=50)
    async with aiohttp.ClientSession(url, timeout=timeout) as client:

        async def one(path: str, body: dict[str, Any]) -> bytes:
            async with client.post(path, json=body) as response:
                answer = await response.read()
                assert response.status == 200, answer
                return joined(answer) if body.get("stream") else _CHANGES.sub(b"", answer)

        return await asyncio.gather(*(one(path, body) for path, body in NEIGHBOURS))


def joined(events: bytes) -> bytes:
    """What an event stream says, less ids and times. A reader that is late finds several steps in
    one event, so texts, tokens and their log probabilities are joined."""
    *chunks, done, rest = events.split(b"\n\n")
    assert (done, rest) == (b"data: [DONE]", b""), events[-300:]
    told = [chunk for chunk in chunks if not chunk.startswith(b":")]  # no comment: it is alive
    parsed = [orjson.loads(chunk.removeprefix(b"data: ")) for chunk in told]
    choices = [choice for chunk in parsed for choice in chunk["choices"]]
    said: dict[str, Any] = {"usage": _CHANGES.sub(b"", orjson.dumps(parsed[-1]["usage"])).decode()}
    for choice in choices:
        _join(said, {name: each for name, each in choice.items() if name != "index"})
    return orjson.dumps(said, option=orjson.OPT_SORT_KEYS)


def _join(said: dict[str, Any], more: dict[str, Any]) -> None:
    for name, value in more.items():
        if isinstance(value, dict) and name != "top_logprobs":
            _join(said.setdefault(name, {}), value)
        elif isinstance(value, list) or (isinstance(value, str) and name in ("content", "text")):
            said[name] = said.get(name, type(value)()) + value
        elif value is not None:
            said[name] = value


# --- one server ---------------------------------------------------------------------------


@contextmanager
def real_server(
    settings: Settings, make: Callable[[EngineSettings], EngineHandle] = ChildEngine
) -> Iterator[RealServer]:
    """Ready to answer, until this is left."""
    started: threading.Event = threading.Event()
    found: list[RealServer] = []
    failed: list[BaseException] = []
    stop = asyncio.Event()

    async def run() -> None:
        async with running_server(settings, make(settings.engine)) as server:
            async with asyncio.timeout(READY_S):
                await server.handle.wait_ready()
                await server.service.prepare()
            found.append(_real(server))
            started.set()
            await stop.wait()

    def live() -> None:
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(run())
        except BaseException as error:
            failed.append(error)
        finally:
            started.set()

    thread = threading.Thread(target=live, name="real server", daemon=True)
    thread.start()
    try:
        started.wait(READY_S)
        if failed:
            raise failed[0]
        yield found[0]
    finally:
        if found:
            found[0].loop.call_soon_threadsafe(stop.set)
        thread.join(30)
    assert not thread.is_alive()
    if failed:
        raise failed[0]


def _real(server: Server) -> RealServer:
    return RealServer(server.url, server.app, asyncio.get_running_loop())


def settings_for(model: Path, data: Path, **sections: dict[str, Any]) -> Settings:
    """Of a small, deterministic engine that is soon full; `sections` replace fields."""
    settings = Settings(
        server=ServerSettings(server_port=0, model_name="tiny", drain_timeout_s=0.2),
        engine=EngineSettings(
            model=str(model),
            device="cpu",
            dtype="float32",
            threads=1,
            deterministic=True,
            session_len=SESSION_LEN,
            num_blocks=NUM_BLOCKS,
            block_size=BLOCK_SIZE,
            stuck_after_s=30.0,
            standby=False,  # it would come in the middle of a test
        ),
        sessions=SessionSettings(data_dir=str(data)),
        streams=StreamSettings(stream_grace_s=0.2),
    )
    changed = {name: replace(getattr(settings, name), **given) for name, given in sections.items()}
    return replace(settings, **changed)


# --- fixtures; conftest.py has them for all tests here ------------------------------------


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "model"
    return make_model(folder, "llama", max_position_embeddings=SESSION_LEN).path


@pytest.fixture(scope="session")
def engine_server(
    tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RealServer]:
    with real_server(settings_for(tiny_model, tmp_path_factory.mktemp("real"))) as server:
        yield server


@pytest.fixture
async def real(engine_server: RealServer) -> AsyncIterator[RealServer]:
    """One server for all tests, with neighbours; all is as before when each ends."""
    async with as_before(engine_server), neighbours(engine_server):
        yield engine_server


@pytest.fixture
async def http(real: RealServer) -> AsyncIterator[aiohttp.ClientSession]:
    timeout = aiohttp.ClientTimeout(total=50)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(real.url, timeout=timeout, connector=connector) as client:
        yield client


def _num_mailboxes(handle: EngineHandle) -> int:
    if isinstance(handle, RemoteEngine):
        return len(handle._requests._open)
    assert isinstance(handle, FakeEngine)
    return len(handle._mailboxes)


# --- the system's view --------------------------------------------------------------------


def _descriptors(pid: str) -> list[str]:
    names = []
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            names.append(re.sub(r":\[\d+\]", "", os.readlink(link)))
        except FileNotFoundError:
            continue  # that of the listing itself, or closed meanwhile
    return names


def _resident(pid: str) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
