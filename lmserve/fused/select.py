"""Which fused ops run, and why, in one log line."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch

from lmserve.device.launches import runs_triton
from lmserve.device.select import device_for
from lmserve.errors import SettingsError
from lmserve.fused.base import LayerCache, Norm, Ops, QKNorm, RopeTables
from lmserve.fused.plain import PlainOps

log = logging.getLogger(__name__)

# of the whole of a result: a single number may be rounded to the other side
CLOSE = {torch.float32: 1e-5, torch.bfloat16: 5e-3, torch.float16: 1e-3}
OVERLAP_CAPABILITY = (9, 0)
HEADS, KV_HEADS, HEAD_DIM, NUM_TOKENS, SLOTS = 4, 2, 64, 3, 8  # of the probe


def select_ops(
    name: str, dtype: torch.dtype, device: torch.device, overlaps: bool | None = None
) -> Ops:
    """`triton`, `twins`, or for `auto` the kernels where they pass their probe. Raises
    SettingsError where those asked for do not. Kernels overlap where the device can, or as told."""
    if name == "twins":
        return _chosen(PlainOps(), device, "asked for")
    if name == "triton" and not runs_triton(device):
        raise SettingsError("--kernels triton needs a GPU; use auto, or twins to check its path")
    if overlaps is None:
        overlaps = device_for(device).capability() >= OVERLAP_CAPABILITY
    error: Exception | None = None
    for each in dict.fromkeys((overlaps, False)):
        try:
            from lmserve.fused.kernels import TritonOps

            ops = TritonOps(each)
            probe(ops, dtype, device)
        except Exception as failed:  # whatever a compiler raises
            error = failed
        else:
            why = "one beginning while another ends" if each else "one after the other"
            if error is not None:
                why += f", as else their probe failed: {error}"
            return _chosen(ops, device, why)
    if name != "auto":
        raise SettingsError(
            f"--kernels {name} does not work on {device}: {error}; use --kernels torch"
        ) from error
    return _chosen(PlainOps(), device, f"triton failed its probe: {error}", logging.WARNING)


def probe(ops: Ops, dtype: torch.dtype, device: torch.device) -> None:
    """Each op in a graph, against its twin."""
    run = _chain(dtype, device)
    with torch.inference_mode():
        graph = device_for(device).capture(lambda: run(ops))
        graph.replay()
        for got, expected in zip(graph.out, run(PlainOps()), strict=True):
            distance = (got.float() - expected.float()).norm()
            if not distance <= CLOSE[dtype] * expected.float().norm():
                raise RuntimeError("its result is wrong")


def _chain(dtype: torch.dtype, device: torch.device) -> Callable[[Ops], tuple[torch.Tensor, ...]]:
    """Runs all ops, most on what the one before gives."""
    generator = torch.Generator().manual_seed(0)

    def randn(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=generator).to(device, dtype)

    hidden = (HEADS + 2 * KV_HEADS) * HEAD_DIM
    x, residual = randn(NUM_TOKENS, hidden), randn(NUM_TOKENS, hidden)
    norm = Norm(randn(hidden), 1e-6, rounds_first=True)
    qk_norm = QKNorm(randn(HEAD_DIM), randn(HEAD_DIM), 1e-6, rounds_first=True)
    rope = RopeTables(randn(NUM_TOKENS, HEAD_DIM // 2), randn(NUM_TOKENS, HEAD_DIM // 2))
    keys, values = randn(SLOTS, KV_HEADS, HEAD_DIM), randn(SLOTS, KV_HEADS, HEAD_DIM)
    places = torch.arange(NUM_TOKENS, device=device)

    def run(ops: Ops) -> tuple[torch.Tensor, ...]:
        total, cache = residual.clone(), LayerCache(keys.clone(), values.clone())
        normed = ops.add_norm(ops.norm(x, norm), total, norm, norm)
        q = ops.rope_write(normed, places, rope, places, cache, qk_norm)
        gated = ops.gate(normed, "silu")
        finite = ops.add_finite(normed, total)
        return normed, total, q, cache.keys, cache.values, gated, finite

    return run


def _chosen(ops: Ops, device: torch.device, why: str, level: int = logging.INFO) -> Ops:
    log.log(level, "fused ops: %s on %s (%s)", ops.name, device, why)
    return ops
