"""The device of a name, and who speaks for it."""

from __future__ import annotations

from functools import cache

import torch

from lmserve.device.base import Device
from lmserve.errors import SettingsError


def device_for(torch_device: torch.device) -> Device:
    """To be asked in the thread that computes: CUDA's current device is a thread's own."""
    return _device(torch_device.type, torch_device.index or 0)


@cache
def _device(kind: str, index: int) -> Device:
    if kind == "cuda":
        from lmserve.device.cuda import CudaDevice

        return CudaDevice(torch.device(kind, index))
    from lmserve.device.host import HostDevice

    return HostDevice()


def choose_device(name: str) -> torch.device:
    """Of the setting. Raises SettingsError where it is not there."""
    if name == "auto":
        return torch.device("cuda" if num_cuda_devices() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise SettingsError(f"--device {name!r} is unknown; use cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise SettingsError(f"--device {name!r} is not supported; use cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= (count := num_cuda_devices()):
        raise SettingsError(f"--device {name!r} is not there: {count} CUDA devices are; use cpu")
    return device


def num_cuda_devices() -> int:
    from lmserve.device.cuda import num_devices

    return num_devices()
