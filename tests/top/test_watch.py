"""`lmserve top` before a real server, on terminals of several sizes, and without one."""

from __future__ import annotations

import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pexpect
import pytest
from click.testing import CliRunner
from rich.console import Console

from lmserve.bridge.fake import FakeEngine
from lmserve.cli.main import cli
from lmserve.errors import LmserveError, SetupError
from lmserve.server.lifecycle import Server, running_server
from lmserve.settings import EngineSettings, ServerSettings, SessionSettings, Settings
from lmserve.top.figures import Watched
from lmserve.top.snapshot import Snapshot
from lmserve.top.view import frame
from lmserve.top.watch import metrics_url, watch

KEY = "sesame"


@pytest.fixture
async def server(tmp_path: Any) -> AsyncIterator[Server]:
    settings = Settings(
        server=ServerSettings(server_port=0, model_name="mock", api_keys=(KEY,)),
        engine=EngineSettings(engine="mock"),
        sessions=SessionSettings(data_dir=str(tmp_path)),
    )
    async with running_server(settings, FakeEngine()) as running:
        yield running


@pytest.fixture
async def watched(server: Server) -> Watched:
    """After two looks, with an answer between them."""
    seen = Watched(server.url)
    headers = {"Authorization": f"Bearer {KEY}"}
    async with aiohttp.ClientSession(server.url, headers=headers) as web:
        for _ in range(2):
            async with web.get("/metrics") as response:
                seen.see(Snapshot.of(await response.text(), time.monotonic()))
            body = {"prompt": "hi", "max_tokens": 5}
            async with web.post("/v1/completions", json=body) as response:
                assert response.status == 200
    return seen


def shown(watched: Watched, width: int, height: int) -> list[str]:
    console = Console(width=width, height=height, no_color=True)
    with console.capture() as captured:
        console.print(frame(watched, width, height, "q quits"))
    return captured.get().splitlines()


async def test_figures(watched: Watched) -> None:
    figures = watched.figures
    assert figures is not None
    assert (figures.model, figures.state, figures.draining) == ("mock", "ready", False)
    assert figures.requests_s > 0
    assert figures.answer_tokens_s > figures.requests_s
    assert figures.failed_share == 0
    assert figures.server.resident_bytes > 2**20
    assert figures.engine_process is None  # a mock has none of its own
    assert [key.name for key in figures.keys] == ["api-1"]
    assert dict(figures.latencies)["first token"][0] is not None


async def test_frames(watched: Watched) -> None:
    for width, height in ((80, 24), (160, 50), (50, 80), (20, 10)):
        lines = shown(watched, width, height)
        assert all(len(line) <= width for line in lines)
        text = "\n".join(lines)
        assert "ready" in text
        if width >= 50:
            assert len(lines) <= height
            for word in ("first token", "running", "KV blocks", "loop lag", "api-1"):
                assert word in text
    watched.miss("cannot be reached (connection refused)")
    lines = shown(watched, 80, 24)
    assert "trying again" in lines[1]
    assert len(lines) > 10  # what it said last


def test_speculation_hides_nothing() -> None:
    seen = Watched("http://server")
    for number in (1, 2):
        text = "".join(
            f"# TYPE {name} counter\n{name}_total {value}\n"
            for name, value in (
                ("vllm:spec_decode_num_draft_tokens", 100 * number),
                ("vllm:spec_decode_num_accepted_tokens", 75 * number),
                ("vllm:num_preemptions", 7 * number),
            )
        )
        seen.see(Snapshot.of(text, float(number)))
    for width, height in ((80, 24), (160, 50)):
        shows = "\n".join(shown(seen, width, height))
        assert "proposed: 75 % right" in shows and "preempted" in shows and " 7/s" in shows


def test_a_server_that_was_never_there() -> None:
    (line,) = shown(Watched("http://nowhere", problem="does not answer"), 80, 24)
    assert line.strip() == "http://nowhere: does not answer; trying again"


async def test_one_frame_for_a_pipe(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    await watch(server.url, 0.1, KEY, once=True)
    printed = capsys.readouterr().out
    assert "ready" in printed
    assert "\x1b" not in printed


async def test_refusals(server: Server) -> None:
    with pytest.raises(LmserveError, match="--api-key"):
        await watch(server.url, 0.1, None, once=True)
    with pytest.raises(LmserveError, match="is it lmserve"):
        await watch(f"{server.url}/nothing", 0.1, KEY, once=True)
    with pytest.raises(SetupError, match="cannot be reached"):
        await watch("127.0.0.1:1", 0.1, KEY, once=True)
    with pytest.raises(SetupError, match="--once"):
        await watch(server.url, 0.1, KEY, once=False)


@pytest.mark.parametrize(
    "url", ["http://a:1", "a:1", "http://a:1/", "http://a:1/v1", "http://a:1/v1/", "a:1/metrics"]
)
def test_urls(url: str) -> None:
    assert metrics_url(url) == "http://a:1/metrics"


def test_without_rich(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("lmserve.top")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "rich.console", None)
    monkeypatch.setitem(sys.modules, "rich", None)
    told = CliRunner().invoke(cli, ["top"])
    assert told.exit_code == 1
    assert "pip install 'lmserve[top]'" in told.output
    assert told.output.count("\n") == 1


@pytest.mark.parametrize("end", ["q", pytest.param("\x03", marks=pytest.mark.slow)])
def test_a_terminal(end: str) -> None:
    command = ["-m", "lmserve", "top", "127.0.0.1:1", "--interval", "0.1"]
    child = pexpect.spawn(sys.executable, command, dimensions=(24, 80), timeout=50)
    try:
        child.expect("trying again")
        child.send(end)
        child.expect(pexpect.EOF)
        assert b"\x1b[?1049l" in child.before  # the screen is as it was
    finally:
        child.close()
    assert child.exitstatus == 0
