"""The commands with an engine of their own: the mock, which needs no model."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from asyncio.subprocess import PIPE
from pathlib import Path

import aiohttp
import pytest

from lmserve.cli.local import with_model_found
from lmserve.errors import ModelError
from lmserve.settings import EngineSettings, ServerSettings, Settings

ROOT = Path(__file__).resolve().parents[2]
MOCK = ("--engine", "mock")


async def type_in(*args: str, lines: str = "") -> tuple[int | None, str, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "lmserve", *args, cwd=ROOT, stdin=PIPE, stdout=PIPE, stderr=PIPE
    )
    out, err = await process.communicate(lines.encode())
    return process.returncode, out.decode(), err.decode()


async def test_run_answers_on_stdout_and_says_nothing_else():
    code, out, err = await type_in("run", "Hello", *MOCK, "--max-tokens", "5")
    assert (code, err) == (0, "")
    assert len(out.split()) == 5 and out.endswith("\n")


async def test_a_wrong_sampling_value_is_refused_by_name():
    code, out, err = await type_in("run", "Hello", *MOCK, "--temperature", "9")
    assert (code, out) == (1, "")
    assert err.startswith("Error: temperature is 9.0") and err.count("\n") == 1


async def test_an_unknown_model_is_one_line(tmp_path: Path):
    code, out, err = await type_in("serve", "api_server", str(tmp_path / "absent"))
    assert (code, out) == (1, "")
    assert err.startswith("Error: no such model: ") and err.count("\n") == 1


async def test_the_launch_line_of_lmdeploys_page():
    page = ("--server-name", "127.0.0.1", "--server-port", "0", "--tp", "1")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "lmserve", "serve", "api_server", "./model", *page, *MOCK),
        *("--session_len", "512", "--meta_instruction", "Be kind.", "--cache_max_entry_count=0.5"),
        *("--cp", "1", "--api_keys", "k1", "k2"),
        cwd=ROOT,
        stdout=PIPE,
        stderr=PIPE,
    )
    try:
        assert process.stdout is not None
        first = (await process.stdout.readline()).decode()
        assert first.startswith("open http://127.0.0.1:")
        url = first.split()[1]
        question = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}
        async with aiohttp.ClientSession(headers={"Authorization": "Bearer k2"}) as http:
            while b"ready after" not in await process.stdout.readline():
                assert process.returncode is None
            async with http.post(f"{url}/v1/chat/completions", json=question) as answer:
                body = await answer.json()
        assert len("<|im_start|>system\nBe kind.") < body["usage"]["prompt_tokens"]
        process.send_signal(signal.SIGINT)
        _, err = await process.communicate()
        assert err.count(b"Warning: ") == 1 and b"Warning: --cp has no effect" in err
        assert process.returncode == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_a_port_in_use_is_told_before_the_model_is_looked_for(tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        absent = str(tmp_path / "absent")
        code, _, err = await type_in("serve", "api_server", absent, "--server-port", port)
    assert code == 1
    assert err.startswith(f"Error: port {port} of 127.0.0.1 is in use") and err.count("\n") == 1


@pytest.mark.parametrize("command", [("run", "Hello"), ("chat",)])
async def test_ctrl_c_ends_the_fetching_of_a_model(command: tuple[str, ...], tmp_path: Path):
    pip = tmp_path / "pip"  # one that never comes to an end
    pip.mkdir()
    (pip / "__init__.py").touch()
    (pip / "__main__.py").write_text(
        "import signal\nprint('fetching', flush=True)\nsignal.pause()\n"
    )
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "lmserve", *command, "--cache-dir", str(tmp_path)),
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        stdin=PIPE,
        stdout=PIPE,
        stderr=PIPE,
    )
    try:
        assert process.stderr is not None
        while await process.stderr.readline() != b"fetching\n":
            assert process.returncode is None
        process.send_signal(signal.SIGINT)
        out, err = await process.communicate()
        assert (process.returncode, out, err) == (130, b"", b"")
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_chat_answers_each_line():
    code, out, err = await type_in("chat", *MOCK, "--max_tokens", "3", lines="Hi\nAnd?\n")
    assert code == 0
    assert [len(line.split()) for line in out.splitlines()] == [3, 3]
    assert err.count("\n") == 1  # the line of help


async def test_serve_says_where_and_stops_on_ctrl_c():
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "lmserve", "serve", "api_server", *MOCK, "--server_port", "0"),
        cwd=ROOT,
        stdout=PIPE,
        stderr=PIPE,
    )
    try:
        assert process.stdout is not None
        line = (await process.stdout.readline()).decode()
        url = next(word for word in line.split() if word.startswith("http://127.0.0.1:"))
        async with aiohttp.ClientSession() as http, http.get(f"{url}/v1/models") as response:
            assert response.status == 200
        process.send_signal(signal.SIGINT)
        _, err = await process.communicate()
        assert process.returncode == 0
        assert b"Traceback" not in err
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def test_the_model_found_gives_path_and_name(tmp_path: Path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"")
    settings = with_model_found(Settings(engine=EngineSettings(model=str(tmp_path))))
    assert settings.engine.model == str(tmp_path)
    assert settings.server.model_name == tmp_path.name
    named = Settings(ServerSettings(model_name="mine"), EngineSettings(model=str(tmp_path)))
    assert with_model_found(named).server.model_name == "mine"


def test_a_model_that_is_not_there_is_a_model_error(tmp_path: Path):
    with pytest.raises(ModelError, match="no such model"):
        with_model_found(Settings(engine=EngineSettings(model=str(tmp_path / "absent.gguf"))))
