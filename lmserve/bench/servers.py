"""Servers under test: started by a command and ended by their id, or running already."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from typing import IO
from urllib.parse import urlsplit

import aiohttp
import orjson

from lmserve.bench.client import Answer, Client, Manner, Prompt
from lmserve.bench.machine import Load, LoadMeter
from lmserve.bench.processes import pid_listening
from lmserve.errors import SetupError

PORT = re.compile(r"--(?:server[-_])?port[ =](\d+)")
VARIABLE = re.compile(r"[A-Za-z_]\w*=")
FIRST, FIRST_TOKENS = Prompt("", "Hi"), 2
ASK_EVERY_S, ASK_EVERY_SHARE = 0.02, 0.01  # of the time waited: asking costs the server too
END_S = 20.0  # what a server has to end in before it is killed


@dataclass(frozen=True, slots=True)
class Server:
    name: str
    command: str = ""  # `{port}` in it is a free one; NAME=value words before it are environment
    url: str = ""  # of one that runs already

    @classmethod
    def parse(cls, text: str) -> Server:
        name, found, what = (part.strip() for part in text.partition("="))
        if not (name and what):
            raise SetupError(f"--server {text!r}: write NAME=COMMAND or NAME=http://HOST:PORT")
        if what.startswith(("http://", "https://")):
            return cls(name, url=what.rstrip("/").removesuffix("/v1"))
        if "{port}" not in what and not PORT.search(what):
            raise SetupError(f"--server {name}: its command names no port; add --port {{port}}")
        return cls(name, command=what)


@dataclass(frozen=True, slots=True)
class Live:
    """A server that answers."""

    name: str
    client: Client
    start_s: float | None  # from the command to the first answer; None: it ran already
    start_load: Load | None  # of the machine meanwhile
    pid: int | None  # of the first of its processes; None: on another machine


@asynccontextmanager
async def running(
    server: Server, session: aiohttp.ClientSession, manner: Manner, start_limit_s: float
) -> AsyncIterator[Live]:
    if server.url:
        client, answer = await _ask_first(session, server.url, manner)
        if answer.error:
            raise SetupError(f"{server.url} does not answer: {answer.error}")
        pid = pid_listening(urlsplit(server.url).port or 80)
        yield Live(server.name, client, None, None, pid)
        return
    with tempfile.TemporaryFile() as log:
        meter = LoadMeter()
        began = time.perf_counter()
        process, url = _start(server, log)
        try:
            client = await _first_answer(process, log, session, url, manner, start_limit_s)
            start_s = time.perf_counter() - began
            yield Live(server.name, client, start_s, meter.read(), process.pid)
        finally:
            await asyncio.to_thread(_end, process)


def _start(server: Server, log: IO[bytes]) -> tuple[subprocess.Popen[bytes], str]:
    """With its URL."""
    if named := None if "{port}" in server.command else PORT.search(server.command):
        port = named[1]
    else:  # wherever the command has it, in a flag or not
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
    command = server.command.replace("{port}", port)
    words, environment = shlex.split(command), dict(os.environ)
    while words and VARIABLE.match(words[0]):
        name, _, value = words.pop(0).partition("=")
        environment[name] = value
    try:
        process = subprocess.Popen(
            words,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # so that what it leaves behind can be ended too
        )
    except (OSError, IndexError) as error:
        raise SetupError(f"cannot be started: {error}") from None
    return process, f"http://127.0.0.1:{port}"


async def _first_answer(
    process: subprocess.Popen[bytes],
    log: IO[bytes],
    session: aiohttp.ClientSession,
    url: str,
    manner: Manner,
    limit_s: float,
) -> Client:
    began = time.perf_counter()
    with suppress(TimeoutError):
        async with asyncio.timeout(limit_s):
            while process.poll() is None:
                client, answer = await _ask_first(session, url, manner)
                if not answer.error:
                    return client
                waited = time.perf_counter() - began
                await asyncio.sleep(max(ASK_EVERY_S, ASK_EVERY_SHARE * waited))
    status = process.poll()
    what = f"ended with status {status}" if status is not None else f"no answer in {limit_s:g} s"
    raise SetupError(f"{what}; its last words: {_last_words(log)}")


async def _ask_first(
    session: aiohttp.ClientSession, url: str, manner: Manner
) -> tuple[Client, Answer]:
    model = manner.model or await _model(session, url)
    client = Client(session, url, replace(manner, model=model))
    return client, await client.ask(FIRST, FIRST_TOKENS)


async def _model(session: aiohttp.ClientSession, url: str) -> str:
    """The first that the server lists; any name where it lists none."""
    try:
        async with session.get(f"{url}/v1/models") as response:
            return str(orjson.loads(await response.read())["data"][0]["id"])
    except (aiohttp.ClientError, OSError, ValueError, LookupError, TypeError):
        return "m"


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(END_S)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # what it left behind, itself if need be
    process.wait()


def _last_words(log: IO[bytes]) -> str:
    log.seek(0)
    lines = log.read().decode(errors="replace").splitlines()
    return " | ".join(line.strip()[:300] for line in lines[-4:]) or "none"
