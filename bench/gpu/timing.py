"""How long something takes on the device, the least of several times."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch


def best_us(
    run: Callable[[int], object], device: str, *, repeats: int = 20, tries: int = 5
) -> float:
    """Of one call, on a GPU within a CUDA graph of `repeats` calls, so that launching is not
    timed. `run` gets the number of its call, to take turns among inputs larger than the L2."""
    if not device.startswith("cuda"):
        return min(_host_us(run, repeats) for _ in range(tries))
    for number in range(3):  # kernels are compiled, libraries choose theirs
        run(number)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for number in range(repeats):
            run(number)
    graph.replay()
    torch.cuda.synchronize()
    return min(_replay_us(graph) for _ in range(tries)) / repeats


def _replay_us(graph: torch.cuda.CUDAGraph) -> float:
    began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    began.record()
    graph.replay()
    ended.record()
    torch.cuda.synchronize()
    return float(began.elapsed_time(ended)) * 1e3


def _host_us(run: Callable[[int], object], repeats: int) -> float:
    began = time.perf_counter()
    for number in range(repeats):
        run(number)
    return (time.perf_counter() - began) * 1e6 / repeats
