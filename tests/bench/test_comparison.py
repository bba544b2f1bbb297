"""Servers in turn: ours as its command starts it, one that runs, and some that fail."""

from __future__ import annotations

import os
import select
import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lmserve.bench.comparison import Plan, compare
from lmserve.bench.comparison_tables import detailed
from lmserve.bench.processes import pid_listening, pss_mib
from lmserve.bench.records import Begun, Lived, Measured, Record, Records
from lmserve.bench.servers import Server
from lmserve.bench.workload import Workload
from tests.bench.servers import faking

SMALL = Workload("small", users=2, num_requests=3, prompt_tokens=400, max_tokens=5)


async def compared(**plan: Any) -> list[Record]:
    noted: list[Record] = []
    await compare(Plan(seed="1", quiet_wait_s=0, **plan), noted.append)
    return noted


def deaf(told: Path, trap: str = "") -> str:
    """A server that answers nothing, and tells its own id and its child's."""
    script = f"{trap} echo I am deaf; sleep 60 & echo $$ $! > {told}; wait"
    return f"sh -c {shlex.quote(script)} --port {{port}}"


def ends(pid: int) -> bool:
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([handle], [], [], 10)[0])
    finally:
        os.close(handle)


async def test_servers_take_turns_and_the_order_is_turned(tmp_path: Path):
    ours = (
        "LMSERVE_LOG_LEVEL=warning LMSERVE_SERVER_PORT={port} "  # no flag names the port
        f"{sys.executable} -m lmserve serve api_server --engine mock --data-dir {tmp_path}"
    )
    async with faking() as fake:
        servers = [Server.parse(f"ours={ours}"), Server.parse(f"fake={fake.url}/v1")]
        noted = await compared(servers=servers, workloads=[SMALL], rounds=2, repeats=0, keep=True)
    assert [type(each) for each in noted] == [Begun, *[Measured, Lived] * 4]
    runs = [each for each in noted if isinstance(each, Measured)]
    lives = [each for each in noted if isinstance(each, Lived)]
    assert [run.server for run in runs] == ["ours", "fake", "fake", "ours"]
    assert [run.round for run in runs] == [0, 0, 1, 1]
    assert {(run.figures.ok, run.figures.errors) for run in runs} == {(3, 0)}
    assert {run.figures.output_tokens_mean for run in runs} == {5}
    assert all(abs(run.figures.prompt_tokens_mean - 400) < 40 for run in runs)
    assert [life.start_s is not None for life in lives] == [True, False, False, False]
    assert all(life.pss_mib and not life.error for life in lives)


async def test_a_disturbed_run_is_made_again_with_new_prompts(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("lmserve.bench.machine.BUSY_SHARE", -1.0)  # any machine is disturbed
    async with faking() as fake:
        servers = [Server("fake", url=fake.url)]
        noted = await compared(servers=servers, workloads=[SMALL], rounds=1, repeats=1)
        texts = [body["messages"][0]["content"] for body in fake.bodies]
    assert [each.attempt for each in noted if isinstance(each, Measured)] == [0, 1]
    assert len(set(texts)) == len(texts)


async def test_a_server_that_fails_does_not_end_the_comparison(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("lmserve.bench.servers.END_S", 0.1)
    told = tmp_path / "pids"
    async with faking() as fake:
        servers = [
            Server("deaf", deaf(told, trap="trap '' TERM;")),
            Server("dead", "sh -c 'echo no model; exit 3' --port {port}"),
            Server("none", f"{tmp_path}/server --port {{port}}"),
            Server("fake", url=fake.url),
            Server("gone", url="http://127.0.0.1:1"),
        ]
        noted = await compared(servers=servers, workloads=[], rounds=1, start_limit_s=1)
    errors = {each.server: each.error for each in noted if isinstance(each, Lived)}
    assert errors["deaf"] == "no answer in 1 s; its last words: I am deaf"
    assert errors["dead"] == "ended with status 3; its last words: no model"
    assert errors["none"].startswith("cannot be started: ")
    assert errors["gone"].startswith("http://127.0.0.1:1 does not answer: ")
    assert errors["fake"] == ""
    assert all(ends(int(pid)) for pid in told.read_text().split())
    records = Records()
    for each in noted:
        records.add(each)
    assert "- dead, round 1: ended with status 3" in detailed(records)


def test_a_command_that_is_ended_ends_its_servers(tmp_path: Path):
    told = tmp_path / "pids"
    os.mkfifo(told)
    command = [sys.executable, "-m", "lmserve", "bench", "startup", "--quiet-wait-s", "0"]
    command += ["--server", f"x={deaf(told)}"]
    bench = subprocess.Popen(command)
    try:
        pids = told.read_text().split()
        bench.send_signal(signal.SIGTERM)
        assert bench.wait(40) == 143
    finally:
        bench.kill()
        bench.wait()
    assert all(ends(int(pid)) for pid in pids)


def test_processes_are_weighed_and_found():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert pid_listening(port) == os.getpid()
    assert pid_listening(port) is None
    assert 5 < pss_mib(os.getpid()) < 20_000
