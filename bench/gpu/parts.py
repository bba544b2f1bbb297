"""What is run, in which order, and for how long at most. Standard library only."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from bench.gpu.options import Options
from bench.gpu.rows import LMSERVE, VLLM

FACTS, CHECKS, TABLE, READY, HTTP, PROFILE, SWEEPS = GROUPS = (
    *("facts", "checks", "table", "ready", "http", "profile", "sweeps"),
)
DEFAULT = (FACTS, CHECKS, TABLE)
CHECKED = {  # checks, with their limits in seconds
    "attention": 100,
    "models": 200,
    "kernels": 90,
    "sampling": 40,
    "linears": 60,
    "memory": 60,
    "suite": 150,
}


NUM_FIRST = 2  # of them go before what is measured: without these no figure means anything


@dataclass(frozen=True, slots=True)
class Part:
    """Runs in a process of its own, so that one that breaks the device's state breaks no other."""

    name: str
    group: str
    function: str  # module:name, called with the options, the record and `arguments`
    limit_s: float
    arguments: dict[str, Any] = field(default_factory=dict)
    python: str = ""  # another interpreter
    needs: str = ""  # why it cannot run; "": it can


def parts(options: Options, groups: tuple[str, ...]) -> list[Part]:
    """The most valuable first; of engines that are compared, every second round backwards."""
    checks = list(_checks())
    every = {
        FACTS: [Part(FACTS, FACTS, "bench.gpu.facts:measure", 60)],
        CHECKS: checks[:NUM_FIRST],
        TABLE: list(_table(options)),
        READY: list(_ready(options)),
        HTTP: list(_http(options)),
        PROFILE: [
            Part(f"profile-{shape}", PROFILE, "bench.gpu.trace:measure", 150, {"shape": shape})
            for shape in options.measured
        ],
        SWEEPS: [Part(SWEEPS, SWEEPS, "bench.gpu.sweeps:measure", 120)],
    }
    found = [part for group in GROUPS if group in groups for part in every[group]]
    return found + (checks[NUM_FIRST:] if CHECKS in groups else [])


def _checks() -> Iterator[Part]:
    for name, limit_s in CHECKED.items():
        yield Part(f"check-{name}", CHECKS, f"bench.gpu.checks.{name}:check", limit_s)


def _table(options: Options) -> Iterator[Part]:
    for number in range(options.rounds):
        for shape in options.measured:
            engines = (LMSERVE, VLLM) if number % 2 == 0 else (VLLM, LMSERVE)
            for engine in engines:
                yield Part(
                    f"rows-{engine}-{shape}{_round(number)}",
                    TABLE,
                    "bench.gpu.rows:measure",
                    120 if engine == LMSERVE else 260,
                    {"engine": engine, "shape": shape},
                    options.peer_python if engine == VLLM else "",
                    "" if engine == LMSERVE else _no_peer(options),
                )


def _ready(options: Options) -> Iterator[Part]:
    for weights in ("dummy", "disk") if options.checkpoint else ("dummy",):
        arguments = {"shape": options.measured[0], "weights": weights}
        yield Part(f"ready-{weights}", READY, "bench.gpu.served:ready", 200, arguments)


def _http(options: Options) -> Iterator[Part]:
    for number in range(options.rounds):
        for engine in (LMSERVE, VLLM) if number % 2 == 0 else (VLLM, LMSERVE):
            yield Part(
                f"http-{engine}{_round(number)}",
                HTTP,
                "bench.gpu.served:rows",
                220 if engine == LMSERVE else 330,
                {"engine": engine, "shape": options.measured[0]},
                needs="" if engine == LMSERVE else _no_peer(options),
            )


def _round(number: int) -> str:
    return f"-{number + 1}" if number else ""


def _no_peer(options: Options) -> str:
    if not options.cuda:
        return "vllm is measured on a GPU only"
    return "" if options.peer_python else "vllm is not installed (--peer-python names a Python)"


def has_vllm(python: str) -> bool:
    test = "import importlib.util, sys; sys.exit(importlib.util.find_spec('vllm') is None)"
    return subprocess.run([python, "-c", test], check=False, timeout=60).returncode == 0
