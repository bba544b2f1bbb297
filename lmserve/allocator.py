"""The C library's allocator, told to give memory back.

By default glibc keeps an arena for each thread, and takes ever larger buffers from heaps that
cannot shrink while one small thing lives at their end: a process that runs for days keeps its
highest peak, many times. docs/reliability.md has the figures.
"""

from __future__ import annotations

import ctypes

# of malloc.h
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
NUM_ARENAS = 2  # the main thread's, and one for all workers
LARGE_BYTES = 128 * 1024  # of its own mapping, which goes when it is freed; glibc's first choice


def give_memory_back() -> None:
    """For the whole process, from here on; where there is another C library, nothing."""
    share_arenas()
    for threshold in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD):  # set, they no longer grow by themselves
        _set(threshold, LARGE_BYTES)


def share_arenas() -> None:
    """That alone: for a process that has the same large buffers in each step, where pages that come
    and go cost time."""
    _set(M_ARENA_MAX, NUM_ARENAS)


def _set(option: int, value: int) -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(option, value)
