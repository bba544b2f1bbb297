"""`lmserve serve api_client` against a real server: typed in a terminal, and fed by a pipe."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from click.testing import CliRunner, Result

from lmserve.bridge.fake import FakeEngine
from lmserve.cli.main import cli
from lmserve.messages import unpack_ids
from lmserve.server.lifecycle import running_server
from lmserve.settings import EngineSettings, ServerSettings, SessionSettings, Settings

pexpect = pytest.importorskip("pexpect")
ROOT = Path(__file__).resolve().parents[2]
MAX_WAIT_S = 30
UP = "\x1b[A"


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine(EngineSettings(engine="mock", session_len=128))


@pytest.fixture
async def url(engine: FakeEngine, tmp_path: Path) -> AsyncIterator[str]:
    settings = Settings(
        server=ServerSettings(server_port=0, drain_timeout_s=0.0, api_keys=("right",)),
        engine=EngineSettings(engine="mock", session_len=128),
        sessions=SessionSettings(data_dir=str(tmp_path)),
    )
    async with running_server(settings, engine) as server:
        await server.handle.wait_ready()
        yield server.url


@contextmanager
def typing(*args: str) -> Iterator[Any]:
    """The command in a terminal of its own."""
    child = pexpect.spawn(
        sys.executable, ["-m", "lmserve", *args],
        cwd=str(ROOT), encoding="utf-8", timeout=MAX_WAIT_S, env={**os.environ, "TERM": "dumb"},
    )  # fmt: skip
    try:
        yield child
    finally:
        child.close(force=True)


async def pipe(*args: str, lines: str = "") -> Result:
    """The command with a pipe for its input."""
    command = ["serve", "api_client", *args]
    return await asyncio.to_thread(CliRunner().invoke, cli, command, input=lines)


def asked(engine: FakeEngine) -> list[str]:
    """The prompts so far: in the mock's vocabulary a byte is a token."""
    return [
        bytes(token for token in unpack_ids(one.token_ids) if token < 256).decode()
        for one in engine.submits
    ]


async def test_a_conversation_in_a_terminal(url: str, engine: FakeEngine) -> None:
    engine.will_say("Good", " morning").will_hang("Once", " upon").will_say("Red").will_say("New")

    def dialogue() -> int:
        with typing("serve", "api_client", url, "--api-key", "right") as child:
            child.expect_exact("mock, session 1. A blank line sends.")
            child.expect("> $")
            child.sendline("first line")
            child.expect(r"\.\.\. $")
            child.sendline("second line\n")
            child.expect_exact("Good morning\r\n")
            child.expect("> $")
            child.sendline("A story\n")
            child.expect_exact("Once upon")
            child.sendintr()
            child.expect_exact("(stopped)\r\n")
            child.expect("> $")
            child.send("never sent")
            child.expect_exact("never sent")
            child.sendintr()
            child.expect("> $")
            child.sendline(f"{UP}\n")  # what was sent last
            child.expect_exact("A story")
            child.expect_exact("Red\r\n")
            child.expect("> $")
            child.sendline("end\n")
            child.expect_exact("forgotten")
            child.expect("> $")
            child.sendline("Hi\n")
            child.expect_exact("New\r\n")
            child.expect("> $")
            child.sendline("exit\n")
            child.expect(pexpect.EOF)
            child.close()
            return int(child.exitstatus)

    assert await asyncio.to_thread(dialogue) == 0
    first, second, third, fourth = asked(engine)
    assert "first line\nsecond line" in first
    assert "Good morning" in second and "A story" in second
    assert "Once upon" in third and third.count("A story") == 2  # a stopped answer is kept
    assert "never sent" not in third
    assert "story" not in fourth
    assert len(engine.aborts) == 1


@pytest.mark.parametrize("key", ["ctrl-c", "ctrl-d"])
async def test_keys_that_leave_keep_the_session(url: str, engine: FakeEngine, key: str) -> None:
    engine.will_say("Fine").will_say("Again")

    def dialogue() -> int:
        with typing("serve", "api_client", url, "--api-key", "right") as child:
            child.expect("> $")
            child.sendline("Hi\n")
            child.expect_exact("Fine\r\n")
            child.expect("> $")
            child.sendintr() if key == "ctrl-c" else child.sendeof()
            child.expect(pexpect.EOF)
            child.close()
            return int(child.exitstatus)

    assert await asyncio.to_thread(dialogue) == (130 if key == "ctrl-c" else 0)
    result = await pipe(url, "--api-key", "right", lines="And now?\n")
    assert result.stdout == "Again\n"
    assert "(goes on after" in result.stderr
    assert "Fine" in asked(engine)[1]


async def test_a_pipe_gets_answers_alone_on_stdout(url: str, engine: FakeEngine) -> None:
    engine.will_say("One", " two").will_say("Three").will_say("Four")
    lines = "\nHi\nthere\n\n\nend\n\nHo\n\nAnd\nso on"
    result = await pipe(url, "--api-key", "right", "--session-id", "7", lines=lines)
    assert (result.exit_code, result.stdout) == (0, "One two\nThree\nFour\n")
    first, second, third = asked(engine)
    assert "Hi\nthere" in first
    assert "there" not in second
    assert "Ho" in third and "And\nso on" in third


async def test_exit_forgets_the_session(url: str, engine: FakeEngine) -> None:
    engine.will_say("One").will_say("Two")
    for prompt in ("Hi", "Ho"):
        result = await pipe(url, "--api-key=right", lines=f"{prompt}\n\nexit\n\nnever read\n")
        assert result.exit_code == 0
    assert "Hi" not in asked(engine)[1]


async def test_a_cut_answer_and_a_full_session_are_told(url: str, engine: FakeEngine) -> None:
    engine.will_say(*"abcdef")
    lines = "Hi\n\n" + "x" * 200 + "\n\n"
    flags = ("--api-key", "right", "--request_output_len", "3")
    result = await pipe(url, *flags, lines=lines)
    assert result.stdout == "abc\n"
    assert "(cut after 3 tokens: --request-output-len allows more)" in result.stderr
    assert "(the session is full: `end` begins a new one)" in result.stderr


async def test_a_failed_answer_is_told_and_the_next_one_works(url: str, engine: FakeEngine) -> None:
    engine.will_fail("out of luck", "Let me").will_say("Fine")
    result = await pipe(url, "--api-key", "right", lines="Hi\n\nHo\n")
    assert (result.exit_code, result.stdout) == (0, "Let me\nFine\n")
    assert re.search(r"^Error: .*out of luck", result.stderr, re.MULTILINE)


@pytest.mark.parametrize("key", [[], ["--api-key", "wrong"]])
async def test_a_missing_key_is_one_line(url: str, key: list[str]) -> None:
    result = await pipe(url, *key)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith(f"Error: {url}/v1/models answered 401: ")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "http://127.0.0.1:{}/v1/", "ftp://127.0.0.1:{}"])
async def test_no_server_is_one_line(unused_tcp_port: int, form: str) -> None:
    result = await pipe(form.format(unused_tcp_port))
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("Error: ") and "no server answers there" in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"nonsense\n", "sent no line of the protocol"),
        (b"[1]\n", "sent no line of the protocol"),
        (b"{}\n", "sent no line of the protocol"),
        (b'{"text":"x","tokens":1,"finish_reason":null}\n', "broke off"),
    ],
)
async def test_nonsense_is_one_line(body: bytes, message: str) -> None:
    async def models(_: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "tiny"}]})

    async def interactive(_: web.Request) -> web.Response:
        return web.Response(body=body)

    app = web.Application()
    app.router.add_get("/v1/models", models)
    app.router.add_post("/v1/chat/interactive", interactive)
    async with TestServer(app) as server:
        result = await pipe(str(server.make_url("/")), lines="Hi\n")
    assert result.exit_code == 0
    assert result.stderr.count("Error: ") == 1 and message in result.stderr


def test_a_server_that_dies_mid_answer(tmp_path: Path) -> None:
    """A real process: Ctrl-C ends its answer, its death is one line, and the prompt is back."""
    command = ("serve", "api_server", "--engine", "mock", "--mock-tokens-s", "20")
    place = ("--server-port", "0", "--data-dir", str(tmp_path))
    with typing(*command, *place) as server:
        server.expect(r"open (http://\S+) in")
        url = server.match[1]
        server.expect_exact("ready after")
        with typing("serve", "api_client", url) as child:
            child.expect("> $")
            child.sendline("Go\n")
            child.expect(r"( \w+){3}")
            child.sendintr()
            child.expect_exact("(stopped)\r\n")
            child.expect("> $")
            child.sendline("On\n")
            child.expect(r"( \w+){3}")
            server.kill(signal.SIGKILL)
            child.expect(r"\r\nError: http://\S+: the connection was lost\r\n")
            child.expect("> $")
            child.sendline("exit\n")
            child.expect_exact("no server answers there")
            child.expect(pexpect.EOF)
            child.close()
            assert child.exitstatus == 1
