"""Servers over HTTP on this machine: the time from the command to the first answer, and tokens a
second and times to first token by the number of users."""

from __future__ import annotations

import asyncio
import shlex
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.gpu.engine import flags_of, settings_of
from bench.gpu.options import Options
from bench.gpu.record import Record
from bench.gpu.rows import LMSERVE, MAX_BATCH_SIZE, MAX_MODEL_LEN
from bench.gpu.shapes import write_model, write_weights
from lmserve.bench.client import COMPLETIONS, Manner
from lmserve.bench.figures import median
from lmserve.bench.load import Limits, http, prepare, run
from lmserve.bench.servers import Live, Server, running
from lmserve.bench.summary import Figures, summary
from lmserve.bench.workload import Workload

MANNER = Manner(endpoint=COMPLETIONS)
LIMITS = Limits(warmup=2, duration_s=120.0, timeout_s=120.0)
START_LIMIT_S = 400.0
ATTEMPTS = 2  # the better counts, as in the offline rows
SETTLE_S = 45.0  # lmserve captures its graphs while it is idle, others before they are ready


@dataclass(frozen=True, slots=True)
class Users:
    """Each asks again when its answer has ended."""

    users: int
    num_requests: int


USERS = (Users(1, 8), Users(32, 128), Users(128, 384), Users(256, 512))
TINY_USERS = (Users(1, 2), Users(3, 6))


def ready(options: Options, record: Record, *, shape: str, weights: str) -> None:
    """`weights`: dummy, or disk, where they are written first and so are in the system's cache."""
    model = write_model(Path(options.models), shape)
    if weights == "disk":
        record.figure("weights_bytes", write_weights(model, options.device))
    command = server_command(LMSERVE, model, options, "auto" if weights == "disk" else "dummy")
    record.figure("command", command)
    starts = [asyncio.run(_lived(command, ())) for _ in range(options.rounds)]
    record.figure("each_s", starts)
    record.figure("start_s", median(starts))


def rows(options: Options, record: Record, *, engine: str, shape: str) -> None:
    command = server_command(engine, write_model(Path(options.models), shape), options, "dummy")
    record.figure("command", command)
    workloads = [_workload(each, options) for each in (TINY_USERS if options.tiny else USERS)]
    settle_s = SETTLE_S if options.cuda and engine == LMSERVE else 0.0
    record.figure("settle_s", settle_s)
    record.figure("start_s", asyncio.run(_lived(command, workloads, record, settle_s)))


def server_command(engine: str, model: Path, options: Options, load_format: str) -> str:
    if engine == LMSERVE:
        flags = flags_of(settings_of(model, options, load_format=load_format))
        command = [sys.executable, "-m", "lmserve", "serve", "api_server", str(model)]
        data = ["--data-dir", f"{options.models}/data", "--log-level", "warning"]
        return shlex.join([*command, *flags, *data]) + " --server-port {port}"
    flags = [
        *("--load-format", load_format, "--max-model-len", str(MAX_MODEL_LEN)),
        *("--max-num-seqs", str(MAX_BATCH_SIZE), "--no-enable-prefix-caching"),
        *("--gpu-memory-utilization", str(options.reserve)),
    ]
    module = ["-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
    return shlex.join([options.peer_python, *module, *flags]) + " --port {port}"


def _workload(of: Users, options: Options) -> Workload:
    prompt, answer = (24, 4) if options.tiny else (512, 128)
    name = f"{of.users} users, {prompt}->{answer}"
    return Workload(
        name, users=of.users, num_requests=of.num_requests, prompt_tokens=prompt, max_tokens=answer
    )


async def _lived(
    command: str,
    workloads: Sequence[Workload],
    record: Record | None = None,
    settle_s: float = 0.0,
) -> float:
    """One life of a server, ended too where this process is told to. How long it took to start."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    server = Server("measured", command=command)
    async with http(LIMITS) as session, running(server, session, MANNER, START_LIMIT_S) as live:
        await asyncio.sleep(settle_s)
        for work in workloads:
            assert record is not None
            with record.attempt(work.name):
                record.figure(work.name, await _best(live, work))
        return round(live.start_s or 0.0, 2)


async def _best(live: Live, work: Workload) -> dict[str, Any]:
    found = []
    for attempt in range(ATTEMPTS):
        asked = await prepare(live.client, work, LIMITS, f"gpu/{attempt}")
        found.append(summary(await run(live.client, work, asked, LIMITS, f"gpu/{attempt}"), {}))
    best = max(found, key=lambda each: each.output_tok_s)
    if any(each.errors for each in found):
        raise RuntimeError(f"requests failed: {[each.error_kinds for each in found]}")
    return _figures(best) | {"each_tok_s": [round(each.output_tok_s, 1) for each in found]}


def _figures(of: Figures) -> dict[str, Any]:
    return {
        "out_tok_s": round(of.output_tok_s, 1),
        "ttft_ms": round(of.ttft_ms["p50"], 1),
        "ttft_p95_ms": round(of.ttft_ms["p95"], 1),
        "itl_ms": round(of.itl_ms["p50"], 2),
        "tpot_ms": round(of.tpot_ms["p50"], 2),
        "prompt_tokens": round(of.prompt_tokens_mean, 1),
        "output_tokens": round(of.output_tokens_mean, 1),
        "requests": of.ok,
    }
