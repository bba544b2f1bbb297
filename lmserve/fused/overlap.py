"""A kernel that begins while the one before it ends (programmatic dependent launch, from compute
capability 9.0 on).

A kernel launched with `launch_pdl` may read weights at once. Before it reads what others wrote,
and before it writes anything, it waits until the one before has ended; as that one did so too,
all before it have. One launched without it waits for the end of the one before, as always.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def let_next_begin(OVERLAPS: tl.constexpr):
    if OVERLAPS:
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def wait_for_last(OVERLAPS: tl.constexpr):
    if OVERLAPS:
        tl.extra.cuda.gdc_wait()
