"""What a step asks of its logits, by the native kernels: float32 (rows, vocab) on the CPU."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import torch

from lmserve.native.library import Drawing, Kernels, address
from lmserve.sampling import SamplingParams


def likeliest(logits: torch.Tensor, kernels: Kernels) -> tuple[list[int], list[bool]]:
    """As `sampler.likeliest`."""
    logits = logits.contiguous()
    num_rows, vocab_size = logits.shape
    tokens, finite = array("q", bytes(8 * num_rows)), array("B", bytes(num_rows))
    given = (kernels.pool, address(logits), num_rows, vocab_size)
    kernels.library.lms_choose(*given, tokens.buffer_info()[0], finite.buffer_info()[0])
    return tokens.tolist(), list(map(bool, finite))


def draw(
    logits: torch.Tensor,
    params: Sequence[SamplingParams],
    uniforms: Sequence[float],
    kernels: Kernels,
) -> list[int]:
    """As `drawing.draw`."""
    logits = logits.contiguous()
    num_rows, vocab_size = logits.shape
    drawings = (Drawing * num_rows)(
        *(
            Drawing(each.top_p, each.min_p, uniform, each.temperature, max(0, each.top_k))
            for each, uniform in zip(params, uniforms, strict=True)
        )
    )
    tokens = array("q", bytes(8 * num_rows))
    given = (kernels.pool, address(logits), num_rows, vocab_size)
    kernels.library.lms_draw(*given, drawings, tokens.buffer_info()[0])
    return tokens.tolist()
