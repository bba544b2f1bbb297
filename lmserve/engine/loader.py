"""From settings to a runner: device, dtype, weights, attention, KV cache."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from lmserve.attention.select import select_attention
from lmserve.engine.cache.layout import (
    DEFAULT_BYTES,
    DEFAULT_SHARE,
    CacheLayout,
    available_memory,
    block_bytes,
    plan_layout,
)
from lmserve.engine.runner import Runner
from lmserve.errors import ModelError, SettingsError
from lmserve.models.base import Model
from lmserve.models.linear import Numerics
from lmserve.models.registry import build
from lmserve.settings import EngineSettings
from lmserve.weights.checkpoint import open_checkpoint
from lmserve.weights.files import cache_dir
from lmserve.weights.identity import WeightFiles
from lmserve.weights.tokenizer import sampling_defaults

log = logging.getLogger(__name__)

Progress = Callable[[str], None]
CUDA_SHARE = 0.8
IDLE_SHARE = 2  # the cache may hold this many times what can run at once


def load_runner(settings: EngineSettings, progress: Progress) -> Runner:
    """Loads `settings.model`, a local path by now. Raises SetupError with one line."""
    if settings.model is None:
        raise ModelError("no model path was given to the engine")
    path = Path(settings.model)
    numerics = choose_numerics(settings)
    if numerics.device.type == "cpu":
        default = min(torch.get_num_threads(), available_cores())  # OpenMP's own variables count
        torch.set_num_threads(settings.threads or default)
    progress("reading the model")
    files = WeightFiles(path)  # before they are read
    checkpoint = open_checkpoint(path, cache_dir(settings.cache_dir))
    progress("loading the weights")
    model = build(checkpoint, str(path), numerics)
    shape = replace(model.info.cache, block_size=settings.block_size)
    attention = select_attention(
        settings.attention, shape, numerics.dtype, numerics.device, numerics.deterministic
    )
    progress("preparing the tokenizer")
    assets = checkpoint.tokenizer_assets()
    defaults = sampling_defaults(settings.generation_config, assets.generation_defaults)
    runner = Runner(
        model,
        attention,
        choose_layout(settings, model, numerics),
        numerics,
        model_path=str(path),
        assets=replace(assets, generation_defaults=defaults),
        files=files,
    )
    progress("warming up")
    runner.warm_up()
    log.info(
        "%s: %s weights, %d KV blocks of %d tokens (%.0f MiB), contexts up to %d tokens",
        runner.architecture,
        runner.weights,
        runner.num_blocks,
        runner.block_size,
        runner.kv_cache_bytes / 2**20,
        runner.max_model_len,
    )
    return runner


def choose_numerics(settings: EngineSettings) -> Numerics:
    """4-bit weights stay packed unless a dtype asks for exactly what the file says."""
    device = choose_device(settings.device)
    if settings.dtype == "auto":
        dtype = torch.bfloat16 if has_bfloat16(device) else torch.float32
    else:
        dtype = getattr(torch, settings.dtype)
    packed = device.type == "cpu" and settings.dtype in ("auto", "bfloat16")
    return Numerics(dtype, device, packed, settings.deterministic)


def choose_device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise SettingsError(f"--device {name!r} is unknown; use cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise SettingsError(f"--device {name!r} is not supported; use cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise SettingsError(f"--device {name!r} is not there: {count} CUDA devices are; use cpu")
    return device


def has_bfloat16(device: torch.device) -> bool:
    """In hardware: emulated it is slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def choose_layout(settings: EngineSettings, model: Model, numerics: Numerics) -> CacheLayout:
    shape, device = model.info.cache, numerics.device
    on_cpu = device.type == "cpu"
    longest = settings.session_len or model.info.max_positions
    return plan_layout(
        bytes_per_block=block_bytes(
            shape.num_layers,
            shape.num_kv_heads,
            shape.head_dim,
            settings.block_size,
            numerics.dtype.itemsize,
        ),
        block_size=settings.block_size,
        model_len=model.info.max_positions,
        session_len=settings.session_len,
        share=settings.cache_max_entry_count,
        available_bytes=available_memory() if on_cpu else torch.cuda.mem_get_info(device)[0],
        default_share=DEFAULT_SHARE if on_cpu else CUDA_SHARE,
        default_bytes=DEFAULT_BYTES if on_cpu else None,
        max_tokens=IDLE_SHARE * settings.max_batch_size * longest,
        num_blocks=settings.num_blocks,
    )


def available_cores(cpu_max: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Cores this process may use: its affinity, or less where a cgroup limits it."""
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    try:
        quota, period = cpu_max.read_text().split()
        return max(1, min(cores, int(quota) // int(period)))
    except (OSError, ValueError):  # no cgroup, or no limit
        return cores
