"""What a measurement was taken on, and whether the machine was busy with anything else."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Collection
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import lmserve

CPU_FLAGS = (
    *("avx2", "fma", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_bf16"),
    "amx_int8",
)
BUSY_SHARE = 0.06  # of all cores: more than this spent on other work disturbs a measurement
DISTURBED = "*"  # marks such a figure in a table; below it:
NOTE = f"{DISTURBED} other work used more than {BUSY_SHARE:.0%} of the cores, in each attempt"
TICKS = os.sysconf("SC_CLK_TCK")


# --- what it is -----------------------------------------------------------------------------


def describe() -> dict[str, Any]:
    """For the record beside the figures."""
    info, flags = cpu_info()
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "system": platform.platform(),
        "cpu": info.get("model name", platform.processor() or platform.machine()),
        "cpu_flags": flags,
        "cores": num_cores(),
        "memory_gib": round(memory_gib(), 1),
        "python": platform.python_version(),
        "torch": package_version("torch"),
        "lmserve": lmserve.__version__,
        "commit": _commit(),
    }


def cpu_info() -> tuple[dict[str, str], list[str]]:
    """What the kernel says of the first core, and which of the flags that matter it has."""
    info = read_fields("/proc/cpuinfo")
    known = info.get("flags", info.get("Features", "")).split()
    return info, [flag for flag in CPU_FLAGS if flag in known]


def num_cores() -> int | None:
    """Those we may use, where the system says."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def memory_gib() -> float:
    """0 where the system does not say."""
    return int(read_fields("/proc/meminfo").get("MemTotal", "0 kB").split()[0]) / 2**20


def package_version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def read_fields(path: str) -> dict[str, str]:
    """`name: value` lines; the first of a name counts. Empty where there is no such file."""
    if not Path(path).is_file():
        return {}
    lines = [line.partition(":") for line in Path(path).read_text().splitlines()]
    return {name.strip(): value.strip() for name, _, value in reversed(lines)}


def _commit() -> str | None:
    """Of the checkout that this runs from, with a `+` where it was changed since."""
    root = Path(lmserve.__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    try:
        head = _git(root, "rev-parse", "--short=12", "HEAD")
        return head + ("+" if _git(root, "status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(root: Path, *args: str) -> str:
    command = ["git", "-C", str(root), *args]
    return subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=10
    ).stdout.strip()


# --- who else uses it -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Load:
    """Of a stretch of time, in cores: what our processes used, all others, and what the host of a
    virtual machine kept for itself."""

    wall_s: float
    own_cores: float
    foreign_cores: float
    stolen_cores: float

    @property
    def disturbance(self) -> float:
        return self.foreign_cores + self.stolen_cores

    @property
    def is_disturbed(self) -> bool:
        return self.disturbance > BUSY_SHARE * (os.cpu_count() or 1)

    def as_dict(self) -> dict[str, object]:
        return asdict(self) | {"is_disturbed": self.is_disturbed}


class LoadMeter:
    """Of the machine, from its making to `read`. Ours are this process and all below it, and those
    of `others` (pids) with all below them. Where there is no /proc, nothing is ever foreign."""

    def __init__(self, others: Collection[int] = ()):
        self._roots = {os.getpid(), *others}
        self._began = time.perf_counter()
        self._busy, self._stolen = _machine_ticks()
        self._own = _own_ticks(self._roots)

    def read(self) -> Load:
        wall_s = max(time.perf_counter() - self._began, 1e-6)
        own = max(0, _own_ticks(self._roots) - self._own)
        busy, stolen = _machine_ticks()
        foreign = max(0, busy - self._busy - own)
        cores = 1 / (TICKS * wall_s)
        return Load(wall_s, own * cores, foreign * cores, (stolen - self._stolen) * cores)


def _machine_ticks() -> tuple[int, int]:
    """Spent by anyone, and kept by the host, since the start of the machine."""
    try:
        with open("/proc/stat") as file:
            ticks = [int(word) for word in file.readline().split()[1:9]]
    except (OSError, ValueError):
        return 0, 0
    user, nice, system, _, _, irq, softirq, stolen = ticks
    return user + nice + system + irq + softirq, stolen


def _own_ticks(roots: Collection[int]) -> int:
    """Of these processes and all below them, those that have ended and were waited for too."""
    parents: dict[int, int] = {}
    spent: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            # after the name, which may hold anything
            words = entry.read_bytes().rpartition(b")")[2].split()
        except OSError:  # it has ended
            continue
        pid = int(entry.parent.name)
        parents[pid] = int(words[1])
        spent[pid] = sum(map(int, words[11:15]))
    return sum(ticks for pid, ticks in spent.items() if _is_below(pid, roots, parents))


def _is_below(pid: int, roots: Collection[int], parents: dict[int, int]) -> bool:
    while pid in parents:
        if pid in roots:
            return True
        pid = parents[pid]
    return False
