"""Constants that were reckoned and not measured: what each would be on this card."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from bench.gpu.checks.linears import dequantisers, random_groups
from bench.gpu.options import Options
from bench.gpu.record import Record
from bench.gpu.timing import best_us

INT4_ROWS = (1, 8, 16, 32, 48, 64, 96, 128, 192, 256, 512)
INT4_SIZES = ((6144, 4096), (24_576, 4096), (4096, 12_288))
SPLITS = (1, 2, 4, 8, 16, 32, 64)
DECODES = ((1, 300), (1, 4000), (8, 1000), (32, 300), (32, 4000), (128, 300), (256, 300))
HEADS, KV_HEADS, HEAD_DIM = 32, 8, 128


def measure(options: Options, record: Record) -> None:
    with record.attempt("decode splits"):
        record.figure("decode", decodes(options))
    for name, how in (("int4", int4), ("fp8", float8)):
        if options.cuda:
            with record.attempt(name):
                record.figure(name, how(options))


def decodes(options: Options) -> dict[str, Any]:
    """Microseconds of the Triton decode kernel by its number of splits, and by its own choice;
    of flash-attn, where it is there. Beside it what reading the context would take."""
    found = {}
    for rows, context in ((2, 20),) if options.tiny else DECODES:
        found[f"{rows} rows of {context}"] = _decode(rows, context, options)
    return found


def _decode(rows: int, context: int, options: Options) -> dict[str, Any]:
    from lmserve.attention.triton_decode import decode_scratch, paged_decode
    from lmserve.attention.triton_paged import BLOCK_SIZE

    heads, kv_heads, head_dim = (4, 2, 16) if options.tiny else (HEADS, KV_HEADS, HEAD_DIM)
    dtype = torch.bfloat16 if options.cuda else torch.float32

    def randn(*size: int) -> torch.Tensor:
        return torch.randn(*size, device=options.device, dtype=dtype)

    device = torch.device(options.device)
    width = -(-context // BLOCK_SIZE)
    keys, values = (randn(rows * width, BLOCK_SIZE, kv_heads, head_dim) for _ in range(2))
    table = torch.randperm(rows * width, device=device).view(rows, width).int()
    lens = torch.full((rows,), context, dtype=torch.int32, device=device)
    q = randn(rows, heads, head_dim)
    out = torch.empty_like(q)
    own = decode_scratch(rows, heads, kv_heads, head_dim, device)
    times: dict[str, Any] = {"chosen": own.splits(rows, kv_heads), "bytes": 2 * keys.nbytes}
    for splits in SPLITS[:2] if options.tiny else SPLITS:
        scratch = decode_scratch(rows, heads, kv_heads, head_dim, device, splits)

        def run(_: int, scratch: Any = scratch) -> None:
            paged_decode(
                q, keys, values, table, lens, out, scratch, scale=head_dim**-0.5
            )  # fmt: skip

        us = best_us(run, options.device, repeats=2 if options.tiny else 20, tries=3)
        times[f"{splits} splits"] = round(us, 2)
    if options.cuda:
        times["flash_attn"] = _flash(q, keys, values, rows, context)
    return times


def _flash(
    q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, rows: int, context: int
) -> float | str:
    try:
        from flash_attn import flash_attn_with_kvcache
    except ImportError:
        return "not installed"
    page = 256
    width = -(-context // page)
    size = (rows * width, page, *keys.shape[2:])
    pages = [torch.randn(size, device=q.device, dtype=q.dtype) for _ in range(2)]
    table = torch.arange(rows * width, device=q.device, dtype=torch.int32).view(rows, width)
    lens = torch.full((rows,), context, dtype=torch.int32, device=q.device)
    us = best_us(
        lambda _: flash_attn_with_kvcache(
            q[:, None], *pages, cache_seqlens=lens, block_table=table, causal=True
        ),
        "cuda",
    )
    return round(us, 2)


def int4(options: Options) -> dict[str, Any]:
    """Microseconds of a product by torch's 4-bit kernel and by dequantising first, with the dense
    product beside them: `INT4_MAX_ROWS` of models/linears/int4.py is where the first two meet."""
    from lmserve.models.linears.int4 import DeviceInt4Linear

    found: dict[str, Any] = {}
    for size in INT4_SIZES:
        groups = replace(random_groups(*size, options.device), order=None)
        linear = DeviceInt4Linear(groups, None, dequantisers()["triton"])
        dense = groups.dequantise(torch.bfloat16)
        for rows in INT4_ROWS:
            x = torch.randn(rows, size[1], device=options.device, dtype=torch.bfloat16)
            found[f"{size}, {rows} rows"] = {
                "kernel": _us(partial(_by_kernel, linear), x, options),
                "dequantised": _us(partial(_dequantised, linear), x, options),
                "dense": _us(partial(_product, dense), x, options),
            }
    return found


def _by_kernel(linear: Any, x: torch.Tensor) -> torch.Tensor:
    out: torch.Tensor = torch.ops.aten._weight_int4pack_mm(
        x, linear.packed, linear.group_size, linear.pairs
    )
    return out


def _dequantised(linear: Any, x: torch.Tensor) -> torch.Tensor:
    return F.linear(x, linear.dequantise(linear.packed, linear.layout, linear.pairs))


def _product(weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return F.linear(x, weight)


def float8(options: Options) -> dict[str, Any]:
    """Microseconds of a product of 8-bit floats, rounding its rows included, and of a dense one."""
    from lmserve.fused.float8 import round_rows
    from lmserve.models.linears.float8 import Float8Linear, product_on
    from lmserve.weights.quant.float8 import to_float8

    product = product_on(torch.device(options.device))
    if product is None:
        return {"left out": "no product of 8-bit floats runs here"}
    found: dict[str, Any] = {"product": product.__name__}
    for size in INT4_SIZES:
        dense = torch.randn(size, device=options.device, dtype=torch.bfloat16)
        linear = Float8Linear(to_float8(dense), None, product, round_rows)
        for rows in (1, 32, 256, 4096):
            x = torch.randn(rows, size[1], device=options.device, dtype=torch.bfloat16)
            found[f"{size}, {rows} rows"] = {
                "fp8": _us(linear, x, options),
                "dense": _us(partial(_product, dense), x, options),
            }
    return found


def _us(run: Any, x: torch.Tensor, options: Options) -> float:
    """The weight stays in the L2 where it fits: the same for what is compared."""
    return round(best_us(lambda _: run(x), options.device, repeats=10, tries=3), 2)
