"""Triton kernel of the norms: one program a row, which it holds whole."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from lmserve.device.launches import launch
from lmserve.fused.base import Norm
from lmserve.fused.overlap import let_next_begin, wait_for_last

ELEMENTS_A_WARP = 256  # 8 a thread
MAX_WARPS = 16


@triton.jit
def scaled(
    x,  # float32
    weight,
    eps,
    WIDTH: tl.constexpr,
    ROUNDS_FIRST: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """The norm of one row, rounded to DTYPE and wide again."""
    x = x * tl.rsqrt(tl.sum(x * x, axis=0) / WIDTH + eps)
    if ROUNDS_FIRST:
        x = x.to(DTYPE).to(tl.float32)
    return (x * weight).to(DTYPE).to(tl.float32)


@triton.jit
def norm_kernel(
    x,
    residual,
    post_weight,
    weight,
    out,
    finite,
    post_eps,
    eps,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    ADDS: tl.constexpr,
    HAS_POST: tl.constexpr,
    HAS_NORM: tl.constexpr,
    POST_ROUNDS_FIRST: tl.constexpr,
    ROUNDS_FIRST: tl.constexpr,
    OVERLAPS: tl.constexpr,
):
    dtype: tl.constexpr = x.dtype.element_ty
    columns = tl.arange(0, BLOCK)
    inside = columns < WIDTH
    row = tl.program_id(0).to(tl.int64)
    at = row * WIDTH + columns
    # all is asked for before the first is used
    let_next_begin(OVERLAPS)
    if HAS_POST:
        post = tl.load(post_weight + columns, mask=inside, other=0.0).to(tl.float32)
    if HAS_NORM:
        factor = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    wait_for_last(OVERLAPS)
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    if ADDS:
        before = tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
    if HAS_POST:
        value = scaled(value, post, post_eps, WIDTH, POST_ROUNDS_FIRST, dtype)
    if ADDS:
        rounded = (value + before).to(dtype)
        tl.store(residual + at, rounded, mask=inside)
        value = rounded.to(tl.float32)
    if HAS_NORM:
        value = scaled(value, factor, eps, WIDTH, ROUNDS_FIRST, dtype)
        tl.store(out + at, value.to(dtype), mask=inside)
    else:
        broken = tl.where(tl.abs(value) < float("inf"), 0, 1)  # NaN is below nothing
        tl.store(finite + row, tl.sum(broken, axis=0) == 0)


@launch
def launch_norm(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    post: Norm | None,
    norm: Norm | None,
    out: torch.Tensor,
    overlaps: bool,
) -> None:
    """`out` is the norm of x, or of the residual once x is added to it; without a norm, whether
    each row of the residual is finite."""
    num_rows, width = x.shape
    block = triton.next_power_of_2(width)
    norm_kernel[(num_rows,)](
        x,
        x if residual is None else residual,
        x if post is None else post.weight,
        x if norm is None else norm.weight,
        out,
        out,
        0.0 if post is None else post.eps,
        0.0 if norm is None else norm.eps,
        WIDTH=width,
        BLOCK=block,
        ADDS=residual is not None,
        HAS_POST=post is not None,
        HAS_NORM=norm is not None,
        POST_ROUNDS_FIRST=post is not None and post.rounds_first,
        ROUNDS_FIRST=norm is not None and norm.rounds_first,
        OVERLAPS=overlaps,
        launch_pdl=overlaps,
        num_warps=max(1, min(MAX_WARPS, block // ELEMENTS_A_WARP)),
    )
