"""The fused Triton kernels against their twins in plain torch, at the sizes of real models."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import TypeAlias

import torch
import torch.nn.functional as F

from bench.gpu.options import Options
from bench.gpu.record import Record
from lmserve.device.select import device_for
from lmserve.fused.base import (
    FP8,
    Activation,
    LayerCache,
    Norm,
    Ops,
    QKNorm,
    RopeTables,
    RowTiling,
)
from lmserve.fused.plain import PlainOps
from lmserve.fused.select import OVERLAP_CAPABILITY

Compute: TypeAlias = Callable[[Ops], tuple[torch.Tensor, ...]]

WIDTHS, ROWS = (576, 1024, 4096), (1, 33, 300)
HEADS = ((32, 8, 128), (16, 8, 128), (9, 3, 64), (8, 4, 256))
TINY_WIDTHS, TINY_ROWS, TINY_HEADS = (40,), (3,), ((4, 2, 16),)
SIZES, TINY_SIZES = ((6144, 4096), (24_576, 4096), (4096, 12_288)), ((40, 96),)
NUM_SLOTS, NUM_POSITIONS = 1024, 4096
# What is rounded from float32 may fall on the other side, twice at most, and seldom.
STEPS = {torch.float32: 1e-5, torch.bfloat16: 2**-6, FP8: 2**-2}
SELDOM = 0.01
PRODUCT_ERRORS = {torch.float32: 1e-5, torch.bfloat16: 5e-3}  # of the norm


def check(options: Options, record: Record) -> None:
    for dtype in dtypes(options):
        triton, twins = ops_for(dtype, options), PlainOps()
        for name, compute in problems(options, dtype):
            with record.attempt(name):
                compare(name, compute(triton), compute(twins), record)
        for size, tiling in itertools.product(sizes(options), triton.row_tilings):
            name = f"product of one row, {size}, {tiling}, {_of(dtype)}"
            with record.attempt(name):
                check_product(name, size, tiling, triton, Numbers(options.device, dtype), record)


def ops_for(dtype: torch.dtype, options: Options) -> Ops:
    """In bfloat16 as a server runs them: where the device can, one begins while another ends."""
    from lmserve.fused.kernels import TritonOps

    capability = device_for(torch.device(options.device)).capability()
    return TritonOps(dtype == torch.bfloat16 and capability >= OVERLAP_CAPABILITY)


def sizes(options: Options) -> tuple[tuple[int, int], ...]:
    return TINY_SIZES if options.tiny else SIZES


def check_product(
    name: str, size: tuple[int, int], tiling: RowTiling, ops: Ops, numbers: Numbers, record: Record
) -> None:
    """And of the gate of it."""
    x, weight = numbers.randn(1, size[1]), numbers.randn(*size, seed=1)
    whole = F.linear(x.double(), weight.double())
    gate, other = whole.chunk(2, dim=-1)
    wanted: dict[Activation | None, torch.Tensor] = {None: whole, "silu": F.silu(gate) * other}
    for activation, right in wanted.items():
        found = ops.row_product(x, weight, None, tiling, activation)
        error = float((found.double() - right).norm() / right.norm())
        bound = PRODUCT_ERRORS[numbers.dtype]
        record.check(f"{name}, {activation or 'plain'}", error, bound)


def dtypes(options: Options) -> tuple[torch.dtype, ...]:
    """Triton's interpreter rounds to bfloat16 and float8 otherwise than a GPU does."""
    return (torch.bfloat16, torch.float32) if options.cuda else (torch.float32,)


def compare(
    name: str, found: tuple[torch.Tensor, ...], right: tuple[torch.Tensor, ...], record: Record
) -> None:
    for at, (one, other) in enumerate(zip(found, right, strict=True)):
        title = f"{name}, output {at}"
        if one.dtype in STEPS:
            off = share_off(one, other)
            bound = 0.0 if one.dtype == torch.float32 else SELDOM
            record.check(title, max_error(one, other), STEPS[one.dtype], differ=round(off, 6))
            if one.dtype != torch.float32:
                record.check(f"{title}: share that differs", off, bound)
        else:
            record.holds(title, torch.equal(one, other))


def max_error(found: torch.Tensor, right: torch.Tensor) -> float:
    """Of any number, beside its size where that is over 1."""
    found, right = found.float(), right.float()
    if not torch.equal(found.isnan(), right.isnan()):
        return float("nan")
    difference = (found - right).abs() / right.abs().clamp_min(1.0)
    return (
        float(difference[found != right].nan_to_num(0.0).max()) if (found != right).any() else 0.0
    )


def share_off(found: torch.Tensor, right: torch.Tensor) -> float:
    found, right = found.float(), right.float()
    return float(((found != right) & ~(found.isnan() & right.isnan())).float().mean())


# --- what is computed -----------------------------------------------------------------------


def problems(options: Options, dtype: torch.dtype) -> Iterator[tuple[str, Compute]]:
    numbers = Numbers(options.device, dtype)
    tiny = options.tiny
    for width, rows in itertools.product(
        TINY_WIDTHS if tiny else WIDTHS, TINY_ROWS if tiny else ROWS
    ):
        for rounds_first in (True, False):
            said = "" if rounds_first else ", rounded once"
            name = f"norms of {rows} rows of {width}, {_of(dtype)}{said}"
            yield name, _norms(numbers, rows, width, rounds_first)
        yield f"gates of {rows} rows of {width}, {_of(dtype)}", _gates(numbers, rows, width)
    for heads, rows in itertools.product(
        TINY_HEADS if tiny else HEADS, TINY_ROWS if tiny else ROWS
    ):
        for cache in (dtype, FP8) if options.cuda else (dtype,):
            for normed in (True, False):
                said = "normed and " if normed else ""
                of = f"{heads[0]}/{heads[1]} heads of {heads[2]}"
                name = f"{said}turned {rows} rows, {of}, {_of(dtype)}, cache {_of(cache)}"
                yield name, _turned(numbers, rows, heads, cache, normed)


class Numbers:
    """Random ones; the same for the same seed, whatever the device."""

    def __init__(self, device: str, dtype: torch.dtype):
        self.device = device
        self.dtype = dtype

    def randn(self, *size: int, seed: int = 0) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(*size, generator=generator).to(self.device, self.dtype)

    def norm(self, width: int, rounds_first: bool, seed: int) -> Norm:
        weight = 1 + 0.3 * self.randn(width, seed=seed)
        return Norm(weight if rounds_first else weight.float(), 1e-6, rounds_first)

    def places(self, count: int, limit: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(3)
        return torch.randperm(limit, generator=generator)[:count].to(self.device)


def _norms(numbers: Numbers, rows: int, width: int, rounds_first: bool) -> Compute:
    x, start = numbers.randn(rows, width), numbers.randn(rows, width, seed=1)
    norm, post = (numbers.norm(width, rounds_first, seed) for seed in (2, 3))

    def compute(ops: Ops) -> tuple[torch.Tensor, ...]:
        plain, normed = start.clone(), start.clone()
        return (
            ops.norm(x, norm),
            ops.add_norm(x, plain, norm),
            plain,
            ops.add_norm(x, normed, norm, post),
            normed,
            ops.add_finite(x, normed, post),
        )

    return compute


def _gates(numbers: Numbers, rows: int, width: int) -> Compute:
    x = numbers.randn(rows, 2 * width)
    return lambda ops: (ops.gate(x, "silu"), ops.gate(x, "gelu_pytorch_tanh"))


def _turned(
    numbers: Numbers, rows: int, of: tuple[int, int, int], cache_dtype: torch.dtype, normed: bool
) -> Compute:
    heads, kv_heads, head_dim = of
    qkv = numbers.randn(rows, (heads + 2 * kv_heads) * head_dim)
    slots = numbers.places(rows, NUM_SLOTS)
    positions = numbers.places(rows, NUM_POSITIONS)
    qk_norm = None
    if normed:
        q, k = (numbers.norm(head_dim, True, seed).weight for seed in (4, 5))
        qk_norm = QKNorm(q, k, 1e-6, True)
    exponents = torch.arange(0, head_dim, 2, device=numbers.device) / head_dim
    angles = torch.arange(NUM_POSITIONS, device=numbers.device)[:, None] / 1e4**exponents
    tables = RopeTables(angles.cos().to(numbers.dtype), angles.sin().to(numbers.dtype))

    def compute(ops: Ops) -> tuple[torch.Tensor, ...]:
        size = (NUM_SLOTS, kv_heads, head_dim)
        keys, values = (torch.zeros(size, device=numbers.device).to(cache_dtype) for _ in range(2))
        cache = LayerCache(keys, values)
        q = ops.rope_write(qkv, positions, tables, slots, cache, qk_norm)
        return q, keys, values

    return compute


def _of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
