"""What the process's allocator gives back, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PEAK = """
import re, sys
from lmserve.allocator import give_memory_back

def resident_kib():
    with open("/proc/self/status") as file:
        return int(re.search(r"RssAnon:\\s+(\\d+)", file.read())[1])

if sys.argv[1] == "give back":
    give_memory_back()
del [bytearray(2**22)][:]  # from here on glibc, left alone, takes such buffers from its heap
before = resident_kib()
large, small = [], []
for _ in range(64):  # a small one that stays behind each large one
    large.append(bytearray(b"x" * 2**20))
    small.append(bytearray(100_000))
assert resident_kib() - before > 60 * 1024
large.clear()
print(resident_kib() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_a_peak_is_given_back() -> None:
    left, kept = (left_of_a_peak(how) for how in ("give back", "as it is"))
    assert left < 16 * 1024
    if kept < 32 * 1024:
        pytest.skip("another C library: it gives it back by itself")


def left_of_a_peak(how: str) -> int:
    """KiB, of 64 MiB."""
    command = [sys.executable, "-c", PEAK, how]
    return int(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
