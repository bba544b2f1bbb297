"""Rotary position embedding, the half-split form of the Llama family."""

from __future__ import annotations

import math

import torch

from lmserve.models.config import RopeConfig


class Rope:
    """Tables of cosine and sine for every position, and their use."""

    def __init__(
        self,
        config: RopeConfig,
        head_dim: int,
        max_positions: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | None = None,
    ):
        frequencies, scale = _frequencies(config, head_dim)
        angles = torch.arange(max_positions, dtype=torch.float32)[:, None] * frequencies
        both = ((part * scale).to(device, dtype) for part in (angles.cos(), angles.sin()))
        self.tables: tuple[torch.Tensor, ...] = tuple(both)  # (positions, head_dim / 2)

    def at(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Cosine over the whole head, sine and minus sine over its half: once a step."""
        cos, sin = (table.index_select(0, positions) for table in self.tables)
        sin = sin.unsqueeze(1)
        return torch.cat((cos, cos), dim=-1).unsqueeze(1), sin, -sin


def rotate(
    x: torch.Tensor, tables: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
) -> torch.Tensor:
    """x is (T, heads, head_dim); a new tensor."""
    cos, sin, minus_sin = tables
    half = x.shape[-1] // 2
    out = x * cos
    out[..., :half].addcmul_(x[..., half:], minus_sin)
    out[..., half:].addcmul_(x[..., :half], sin)
    return out


def _frequencies(config: RopeConfig, head_dim: int) -> tuple[torch.Tensor, float]:
    """Inverse frequencies, and the factor on cosine and sine."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    frequencies = 1.0 / config.theta**exponents
    if config.kind == "linear":
        return frequencies / config.factor, 1.0
    if config.kind == "llama3":
        return _llama3(config, frequencies), 1.0
    if config.kind == "yarn":
        scale = config.attention_factor
        if scale is None:
            scale = 0.1 * math.log(config.factor) + 1.0 if config.factor > 1 else 1.0
        return _yarn(config, frequencies, head_dim), scale
    return frequencies, 1.0


def _llama3(config: RopeConfig, frequencies: torch.Tensor) -> torch.Tensor:
    """Slow waves are stretched, fast ones kept, those between blended."""
    turns = config.original_max_positions * frequencies / (2 * math.pi)
    low, high = config.low_freq_factor, config.high_freq_factor
    keep = ((turns - low) / (high - low)).clamp(0, 1)
    return frequencies * (keep + (1 - keep) / config.factor)


def _yarn(config: RopeConfig, frequencies: torch.Tensor, head_dim: int) -> torch.Tensor:
    """As llama3, blended by dimension instead of by wave length."""

    def dimension(turns: float) -> float:
        wave = config.original_max_positions / (turns * 2 * math.pi)
        return head_dim * math.log(wave) / (2 * math.log(config.theta))

    low = max(math.floor(dimension(config.beta_fast)), 0)
    high = min(math.ceil(dimension(config.beta_slow)), head_dim - 1)
    steps = torch.arange(head_dim // 2, dtype=torch.float32)
    stretch = ((steps - low) / max(high - low, 0.001)).clamp(0, 1)
    return frequencies * (1 - stretch + stretch / config.factor)
