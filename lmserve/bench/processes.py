"""What Linux tells of a process: its memory, its descriptors, and who listens at a port."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

PROC = Path("/proc")
LISTENING = "0A"
ENGINE = "lmserve-engine"  # what an engine process calls itself


def pss_mib(pid: int, *, with_children: bool = True) -> float:
    """Of a process and all below it: memory that several share is counted once."""
    total = 0
    for each in tree(pid) if with_children else (pid,):
        try:
            lines = (PROC / f"{each}/smaps_rollup").read_text().splitlines()
        except OSError:  # it has ended, or is not ours
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024


def private_mib(pid: int) -> float:
    """What this process alone has written to: whoever else maps the same files, or the system
    reads more or fewer of them, changes nothing. 0 where it has ended, or there is no /proc."""
    try:
        lines = (PROC / f"{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("RssAnon:")) / 1024


def rss_mib(pid: int) -> float:
    """Of this process alone. 0 where it has ended, or there is no /proc."""
    try:
        pages = int((PROC / f"{pid}/statm").read_text().split()[1])
    except OSError:
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def num_descriptors(pid: int) -> int:
    """Of this process alone. 0 where it has ended, or is not ours."""
    try:
        return sum(1 for _ in (PROC / f"{pid}/fd").iterdir())
    except OSError:
        return 0


def tree(pid: int) -> Iterator[int]:
    yield pid
    for path in (PROC / f"{pid}/task").glob("*/children"):
        try:
            children = path.read_text().split()
        except OSError:
            continue
        for child in children:
            yield from tree(int(child))


def engine_of(pid: int) -> int | None:
    """The engine process of this server, not the one that stands by to be the next. None where
    there is none now."""
    return next((each for each in tree(pid) if _name(each) == ENGINE), None)


def _name(pid: int) -> str:
    try:
        return (PROC / f"{pid}/comm").read_text().strip()
    except OSError:
        return ""


def pid_listening(port: int) -> int | None:
    """The least id of those that do: a server's first process. None where none of ours does."""
    sockets = {f"socket:[{inode}]" for inode in _inodes_listening(port)}
    return min((pid for pid in _pids() if sockets and sockets & _open_by(pid)), default=None)


def _inodes_listening(port: int) -> Iterator[str]:
    for name in ("tcp", "tcp6"):
        try:
            lines = (PROC / "net" / name).read_text().splitlines()[1:]
        except OSError:
            continue
        for words in map(str.split, lines):
            if words[3] == LISTENING and int(words[1].rpartition(":")[2], 16) == port:
                yield words[9]


def _pids() -> list[int]:
    return [int(path.name) for path in PROC.glob("[0-9]*")]


def _open_by(pid: int) -> set[str]:
    found = set()
    try:
        for path in (PROC / f"{pid}/fd").iterdir():
            found.add(str(path.readlink()))
    except OSError:  # it has ended, or is not ours: what was found so far
        pass
    return found
