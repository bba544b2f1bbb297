"""How a model computes: which kernels, which types, from the settings and the device."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from lmserve.device.select import choose_device, device_for
from lmserve.errors import SettingsError
from lmserve.fused.base import Ops
from lmserve.fused.select import select_ops
from lmserve.models.linear import Numerics
from lmserve.native.library import Kernels
from lmserve.native.select import choose_kernels
from lmserve.settings import EngineSettings

TORCH_THREADS = torch.get_num_threads()  # before we set it: OpenMP's own variables count
NOT_PAGED = ("native", "cpu", "sdpa")  # attention whose cache the device path does not know


def choose_numerics(settings: EngineSettings) -> Numerics:
    """4-bit weights stay packed unless a dtype asks for exactly what the file says."""
    device = choose_device(settings.device)
    if settings.dtype == "auto":
        dtype = torch.bfloat16 if device_for(device).has_bfloat16() else torch.float32
    else:
        dtype = getattr(torch, settings.dtype)
    fused = find_fused(settings, device, dtype)
    kernels = None if fused is not None else find_kernels(settings, device)
    on_device = fused is not None or device.type != "cpu"
    check(settings, device, on_device=on_device)
    return Numerics(
        dtype,
        device,
        packed=settings.dtype in ("auto", "bfloat16", *(("float16",) if on_device else ())),
        deterministic=settings.deterministic,
        kernels=kernels,
        native_kv=torch.float32 if settings.dtype == "float32" else torch.float16,
        fused=fused,
        quantization=settings.quantization,
        rounded_kv=torch.float8_e4m3fn if settings.kv_cache_dtype == "fp8" else None,
    )


def check(settings: EngineSettings, device: torch.device, *, on_device: bool) -> None:
    """Refuses what goes with the one path alone."""
    if settings.deterministic and on_device:
        raise SettingsError(
            f"--deterministic does not go with --device {device} and --kernels "
            f"{settings.kernels}: products there depend on the batch; leave it out"
        )
    if on_device:
        return
    for flag, wanted in (
        ("--kv-cache-dtype fp8", settings.kv_cache_dtype == "fp8"),
        ("--quantization fp8", settings.quantization == "fp8"),
    ):
        if wanted:
            raise SettingsError(f"{flag} is for cuda (or --kernels twins, to check it)")


def find_fused(settings: EngineSettings, device: torch.device, dtype: torch.dtype) -> Ops | None:
    """None where there is no device path, or torch computes it."""
    wanted = settings.kernels
    if wanted not in ("triton", "twins"):
        if device.type == "cpu" or wanted != "auto":
            return None
        if settings.attention in NOT_PAGED or settings.deterministic:
            return None
    return select_ops(wanted, dtype, device)


def find_kernels(settings: EngineSettings, device: torch.device) -> Kernels | None:
    """None where torch computes."""
    wanted, other = settings.kernels, None
    if device.type != "cpu":
        other = f"--device {device}"
    elif settings.attention in ("cpu", "sdpa"):
        other = f"--attention {settings.attention}"
    if other is None:
        return choose_kernels(wanted, num_threads(settings))
    if wanted not in ("auto", "torch"):
        raise SettingsError(f"--kernels {wanted} does not go with {other}; use --kernels auto")
    return None


def num_threads(settings: EngineSettings) -> int:
    return settings.threads or min(TORCH_THREADS, available_cores())


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
