"""`lmserve serve proxy` and real nodes in processes of their own."""

from __future__ import annotations

import asyncio
import shutil
import signal
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession, TCPConnector
from click.testing import CliRunner

from lmserve.cli.main import cli
from tests.distributor.nodes import CHAT, listen


class Running:
    def __init__(self, process: asyncio.subprocess.Process, url: str):
        self.process = process
        self.url = url


@asynccontextmanager
async def running(*args: str) -> AsyncIterator[Running]:
    """A command, from when it has printed its URL."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "lmserve", "serve", *args, "--server-port", "0",
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        while "http" not in (line := (await process.stdout.readline()).decode()):
            assert line, "it ended"
        url = next(word for word in line.split() if word.startswith("http"))
        yield Running(process, url)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def known(session: ClientSession, num_nodes: int) -> dict[str, Any]:
    """The nodes, once so many live."""
    async with asyncio.timeout(30):
        while True:
            async with session.get("/nodes/status") as response:
                nodes: dict[str, Any] = await response.json()
            if sum(node["alive"] for node in nodes.values()) == num_nodes:
                return nodes
            await asyncio.sleep(0.02)


async def test_killing_a_node_loses_no_other_nodes_stream(tmp_path: Any) -> None:
    """Servers announce themselves, as a user would have them do; one is killed, one stops."""

    def node(number: int, proxy: Running) -> Any:
        return running(
            "api_server", "--engine", "mock", "--mock-tokens-s", "40", "--model-name", f"m{number}",
            "--proxy-url", proxy.url, "--data-dir", str(tmp_path / str(number)),
        )  # fmt: skip

    async with running("proxy") as proxy, node(1, proxy) as one, node(2, proxy) as two:
        async with ClientSession(proxy.url) as session:
            nodes = await known(session, 2)
            assert {url: each["models"] for url, each in nodes.items()} == {
                one.url: ["m1"],
                two.url: ["m2"],
            }

            async def stream(model: str) -> bytes:
                num = 8000 if model == "m1" else 40  # what is killed would not have ended by itself
                sampling = {"max_tokens": num, "ignore_eos": True}
                body = CHAT | sampling | {"model": model, "stream": True}
                async with session.post("/v1/chat/completions", json=body) as response:
                    begun.release()
                    return await response.read()

            begun = asyncio.Semaphore(0)
            streams = [asyncio.create_task(stream(model)) for model in ("m1", "m1", "m2", "m2")]
            for _ in streams:
                await begun.acquire()
            one.process.kill()
            answers = await asyncio.gather(*streams)
            for lost in answers[:2]:
                assert b'"code":"node_lost"' in lost
                assert lost.endswith(b"data: [DONE]\n\n")
            for whole in answers[2:]:
                assert b'"finish_reason":"length"' in whole
                assert b'"error"' not in whole
            await known(session, 1)
            two.process.send_signal(signal.SIGTERM)
            assert await two.process.wait() == 0
            async with session.get("/nodes/status") as response:
                assert two.url not in await response.json()  # it took leave
        proxy.process.send_signal(signal.SIGTERM)
        assert await proxy.process.wait() == 0


@pytest.mark.parametrize(("drain_timeout_s", "finishes"), [("30", True), ("0.1", False)])
async def test_stopping_lets_answers_finish_until_a_deadline(
    make_node: Any, drain_timeout_s: str, finishes: bool
) -> None:
    node = await make_node(tokens_s=40.0)
    flags = ("--node", node.url, "--drain-timeout-s", drain_timeout_s)
    async with running("proxy", *flags) as proxy, ClientSession(proxy.url) as session:
        await known(session, 1)
        body = CHAT | {"stream": True, "max_tokens": 20 if finishes else 8000}
        async with session.post("/v1/chat/completions", json=body) as response:
            await response.content.readany()
            proxy.process.send_signal(signal.SIGTERM)
            rest = await response.read()
        assert rest.endswith(b"data: [DONE]\n\n")
        assert (b'"finish_reason":"length"' in rest) == finishes
        assert (b"the distributor was stopped" in rest) != finishes
        assert await proxy.process.wait() == 0


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--serving-strategy", "DistServe"], "DistServe: not supported yet"),
        (["--node", "nowhere"], "--node: 'nowhere' is no URL of a node"),
        (["--node", "http://0.0.0.0:1"], "--advertise-url"),
        (["--server-port", "99999"], "--server-port"),
        (["--server-name", "192.0.2.1"], "--server-name"),
        (["--ssl"], "SSL_CERTFILE"),
        (["--header-timeout-s", "inf"], "--header-timeout-s must be a number of seconds"),
        (["--drain-timeout-s", "inf"], "--drain-timeout-s must be a number of seconds"),
        (["--drain_timeout_s", "nan"], "--drain-timeout-s must be a number of seconds"),
    ],
)
def test_what_it_refuses(args: list[str], words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSL_CERTFILE", raising=False)
    result = CliRunner().invoke(cli, ["serve", "proxy", *args])
    assert result.exit_code == 1
    assert words in result.output
    assert len(result.output.splitlines()) == 1


def test_a_port_in_use() -> None:
    with listen() as taken:
        taken.listen()
        port = str(taken.getsockname()[1])
        result = CliRunner().invoke(cli, ["serve", "proxy", "--server-port", port])
    assert (result.exit_code, "is in use" in result.output) == (1, True)


def test_lmdeploys_flags_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr("lmserve.distributor.app.serve", lambda *args: seen.append(args))
    flags = [
        "--server_name", "127.0.0.1", "--server_port", "0", "--strategy", "min_observed_latency",
        "--disable-cache-status", "--serving-strategy", "Hybrid", "--log-level", "INFO",
        "--max-connections", "9", "--max-sockets", "8", "--header-timeout-s", "7",
        "--max-body-bytes", "2048",
        "--api-keys", "a", "b", "--node", "http://10.0.0.5:1", "http://10.0.0.6:1",
    ]  # fmt: skip
    result = CliRunner().invoke(cli, ["serve", "proxy", *flags])
    assert (result.exit_code, result.output) == (0, "")
    settings = seen[0][0]
    assert settings.strategy == "min_observed_latency"
    assert settings.api_keys == ("a", "b")
    limits = (settings.max_connections, settings.max_sockets, settings.header_timeout_s)
    assert (*limits, settings.max_body_bytes) == (9, 8, 7.0, 2048)
    assert settings.nodes == ("http://10.0.0.5:1", "http://10.0.0.6:1")


def test_the_distributor_needs_neither_service_nor_engine() -> None:
    program = "import sys, lmserve.distributor.app; print('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    names = done.stdout.decode().split()
    parts = ("service", "engine", "bridge", "text", "models")
    assert [n for n in names if n.startswith(tuple(f"lmserve.{part}" for part in parts))] == []
    assert "torch" not in names


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl to make a certificate")
async def test_https(make_node: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cert, key = str(tmp_path / "cert.pem"), str(tmp_path / "key.pem")
    made = await asyncio.create_subprocess_exec(
        "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
        "-nodes", "-days", "2", "-subj", "/CN=lmserve", "-addext", "subjectAltName=IP:127.0.0.1",
        "-keyout", key, "-out", cert, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    assert await made.wait() == 0
    monkeypatch.setenv("SSL_CERTFILE", cert)
    monkeypatch.setenv("SSL_KEYFILE", key)
    node = await make_node()
    trusted = TCPConnector(ssl=ssl.create_default_context(cafile=cert))
    async with running("proxy", "--ssl", "--node", node.url) as proxy:
        assert proxy.url.startswith("https://")
        async with ClientSession(proxy.url, connector=trusted) as session:
            body = CHAT | {"stream": True, "max_tokens": 2}
            async with session.post("/v1/chat/completions", json=body) as response:
                assert (await response.read()).endswith(b"data: [DONE]\n\n")
