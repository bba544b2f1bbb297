"""What `lmserve bench serve` and `startup` are to measure, from their options.

Imported when one of them runs.
"""

from __future__ import annotations

import json
import time
from dataclasses import replace
from typing import Any

from lmserve.bench.client import Manner
from lmserve.bench.comparison import Plan
from lmserve.bench.load import Limits
from lmserve.bench.servers import Server
from lmserve.bench.summary import slo_from
from lmserve.bench.workload import NAMED, Workload
from lmserve.errors import SetupError

OWN = ("users", "num_requests", "prompt_tokens", "shared_prefix_tokens", "max_tokens", "rate")


def serve_plan(
    *,
    names: tuple[str, ...],
    slo: tuple[str, ...],
    ignore_eos: bool,
    temperature: float,
    warmup: int,
    duration_s: float,
    seed: str,
    repeats: int,
    keep: bool,
    **options: Any,
) -> Plan:
    own = {name: options.pop(name) for name in OWN}
    plan = startup_plan(**options)
    return replace(
        plan,
        workloads=_workloads(names, {name: own[name] for name in own if own[name] is not None}),
        manner=replace(plan.manner, ignore_eos=ignore_eos, temperature=temperature),
        limits=replace(plan.limits, warmup=warmup, duration_s=duration_s),
        slo=slo_from(slo),
        seed=seed or plan.seed,
        repeats=repeats,
        keep=keep,
    )


def startup_plan(
    *,
    servers: tuple[str, ...],
    rounds: int,
    model: str,
    api_key: str,
    endpoint: str,
    extra: str,
    start_limit_s: float,
    quiet_wait_s: float,
    timeout_s: float,
) -> Plan:
    found = [Server.parse(text) for text in servers]
    if not found:
        raise SetupError("name at least one --server NAME=COMMAND or NAME=http://HOST:PORT")
    if len({server.name for server in found}) < len(found):
        raise SetupError("two --server have the same name")
    return Plan(
        servers=found,
        workloads=[],
        rounds=rounds,
        seed=str(time.time_ns() // 10**9),  # prompts that no server has seen
        limits=Limits(timeout_s=timeout_s),
        manner=Manner(model=model, endpoint=endpoint, extra=_object(extra)),
        api_key=api_key,
        quiet_wait_s=quiet_wait_s,
        start_limit_s=start_limit_s,
    )


def _workloads(names: tuple[str, ...], own: dict[str, Any]) -> list[Workload]:
    chosen = [name for text in names for name in text.split(",")]
    if unknown := [name for name in chosen if name not in NAMED]:
        raise SetupError(f"no workload {unknown[0]!r}: there are {', '.join(NAMED)}")
    if own and not chosen:
        return [Workload("own", **own)]
    return [replace(NAMED[name], **own) for name in chosen or NAMED]


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise SetupError(f"--extra {text!r} is not a JSON object")
    return value
