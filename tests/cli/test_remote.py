"""`run` and `chat` against an OpenAI-style server, typed in as a person does."""

from __future__ import annotations

import asyncio
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

ROOT = Path(__file__).resolve().parents[2]


@asynccontextmanager
async def start(*args: str) -> AsyncIterator[Process]:
    """The command, running; it does not outlive its test."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "lmserve", *args, cwd=ROOT, stdin=PIPE, stdout=PIPE, stderr=PIPE
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def type_in(*args: str, lines: str = "") -> tuple[int | None, str, str]:
    async with start(*args) as process:
        out, err = await process.communicate(lines.encode())
    return process.returncode, out.decode(), err.decode()


@pytest.mark.parametrize("suffix", ["", "/", "/v1", "/v1/"])
async def test_run_prints_the_answer_alone_on_stdout(openai_server: Any, suffix: str):
    flags = ["--temperature", "0", "--max_tokens", "5", "--system", "Be brief."]
    code, out, _ = await type_in("run", "Hi", "--model", openai_server.url + suffix, *flags)
    assert (code, out) == (0, "Hello.\n")
    assert openai_server.asked == [
        {
            "model": "tiny",
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "Hi"},
            ],
            "stream": True,
            "temperature": 0.0,
            "max_tokens": 5,
        }
    ]


async def test_run_reads_a_prompt_from_stdin(openai_server: Any):
    code, _, _ = await type_in("run", "-", "-m", openai_server.url, lines="Hi\nthere")
    assert code == 0
    assert openai_server.asked[0]["messages"] == [{"role": "user", "content": "Hi\nthere"}]


async def test_a_refusal_is_one_line(openai_server: Any):
    error = {"error": {"message": "too many tokens", "type": "invalid_request_error"}}
    openai_server.failure = web.json_response(error, status=400)
    code, out, err = await type_in("run", "Hi", "-m", openai_server.url)
    assert (code, out) == (1, "")
    assert err.startswith("Error: ") and err.endswith("answered 400: too many tokens\n")
    assert err.count("\n") == 1


async def test_an_error_in_the_stream_is_told_after_the_words(openai_server: Any):
    openai_server.error_event = b'{"error": {"message": "the engine died"}}'
    code, out, err = await type_in("run", "Hi", "-m", openai_server.url)
    assert (code, out, err) == (1, "Hello.", "Error: the engine died\n")


async def test_a_stream_that_breaks_off_is_not_a_whole_answer(openai_server: Any):
    openai_server.breaks_off = True
    code, out, err = await type_in("run", "Hi", "-m", openai_server.url)
    assert (code, out) == (1, "Hello.")
    assert err == "Error: the server broke off: its answer may not be complete\n"


@pytest.mark.parametrize("event", [b"{broken", b"[1]", b'{"choices": [3]}', b'{"choices": 3}'])
async def test_nonsense_in_the_stream_is_one_line(openai_server: Any, event: bytes):
    openai_server.error_event = event
    code, out, err = await type_in("run", "Hi", "-m", openai_server.url)
    assert (code, out) == (1, "Hello.")
    assert "sent no OpenAI-style event" in err and err.count("\n") == 1


async def test_an_event_without_words_is_passed_over(openai_server: Any):
    openai_server.error_event = b'{"choices": [{"index": 0, "delta": null}]}'
    code, out, _ = await type_in("run", "Hi", "-m", openai_server.url)
    assert (code, out) == (0, "Hello.\n")


async def test_no_server_is_one_line(unused_tcp_port: int):
    code, _, err = await type_in("run", "Hi", "-m", f"http://127.0.0.1:{unused_tcp_port}")
    assert code == 1
    assert err.startswith("Error: ") and "no server answers there" in err
    assert err.count("\n") == 1


async def test_ctrl_c_ends_run_quietly_with_130(openai_server: Any):
    openai_server.hangs = True
    async with start("run", "Hi", "-m", openai_server.url) as process:
        assert process.stdout is not None
        assert await process.stdout.readexactly(6) == b"Hello."
        process.send_signal(signal.SIGINT)
        _, err = await process.communicate()
    assert (process.returncode, err) == (130, b"")
    await openai_server.left.wait()


async def test_chat_keeps_the_conversation_until_clear(openai_server: Any):
    lines = "/help\nHi\n\nAnd?\n/clear\nAgain\n/exit\nnever read\n"
    code, out, err = await type_in("chat", openai_server.url, "--system", "S", lines=lines)
    assert (code, out) == (0, "Hello.\n" * 3)
    assert err.startswith("tiny. /clear forgets")
    asked = [[m["content"] for m in body["messages"]] for body in openai_server.asked]
    assert asked == [["S", "Hi"], ["S", "Hi", "Hello.", "And?"], ["S", "Again"]]


async def test_a_failed_turn_leaves_the_conversation_as_it_was(openai_server: Any):
    openai_server.error_event = b'{"error": "broken"}'
    code, _, err = await type_in("chat", openai_server.url, lines="Hi\nHo\n")
    assert code == 0
    assert err.count("Error: broken\n") == 2
    assert [len(body["messages"]) for body in openai_server.asked] == [1, 1]


async def test_ctrl_c_stops_an_answer_and_the_next_one_leaves(openai_server: Any):
    openai_server.hangs = True
    async with start("chat", openai_server.url) as process:
        assert (
            process.stdin is not None and process.stdout is not None and process.stderr is not None
        )
        await process.stderr.readline()
        process.stdin.write(b"Hi\n")
        assert await process.stdout.readexactly(6) == b"Hello."
        process.send_signal(signal.SIGINT)
        assert await process.stderr.readline() == b" (stopped)\n"
        await openai_server.left.wait()
        openai_server.hangs = False
        process.stdin.write(b"Go on\n")
        assert await process.stdout.readexactly(8) == b"\nHello.\n"
        asked = [message["content"] for message in openai_server.asked[1]["messages"]]
        assert asked == ["Hi", "Hello.", "Go on"]  # what was said before the stop is kept
        process.send_signal(signal.SIGINT)
        await process.communicate()
    assert process.returncode == 130
