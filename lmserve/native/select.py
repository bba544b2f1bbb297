"""Which kernels compute: the setting `kernels`, the processor and what was built decide."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import torch

from lmserve.errors import SettingsError
from lmserve.native.library import DIRECTORY, Kernels, Unusable, load

log = logging.getLogger(__name__)

TORCH = "torch"
# the fastest first, and what each asks of the processor
INSTRUCTIONS: dict[str, Callable[[], bool]] = {
    "amx": lambda: INSTRUCTIONS["avx512"]() and torch.cpu._is_amx_tile_supported(),  # with int8
    "avx512": lambda: torch.cpu._is_avx512_supported() and torch.cpu._is_vnni_supported(),
    "avx2": torch.cpu._is_avx2_supported,  # with fma and f16c on every processor made
}


def runnable(directory: Path = DIRECTORY) -> dict[str, str | None]:
    """Each set of kernels, and why it cannot run here; None where it can."""
    reasons: dict[str, str | None] = {}
    for name, supported in INSTRUCTIONS.items():
        reasons[name] = None if supported() else "this processor lacks the instructions"
        if reasons[name] is None:
            try:
                load(name, directory)
            except Unusable as error:
                reasons[name] = str(error)
    return reasons


def pick(wanted: str, directory: Path = DIRECTORY) -> tuple[str, str]:
    """The kernels of that name, or for `auto` the fastest there are; and why.

    Raises SettingsError where those asked for cannot run.
    """
    if wanted == TORCH:
        return TORCH, "asked for"
    reasons = runnable(directory)
    if wanted == "auto":
        name = next((name for name, reason in reasons.items() if reason is None), TORCH)
        better = [f"{each}: {reason}" for each, reason in reasons.items() if reason is not None]
        return name, "; ".join(better) or "the fastest"
    if reasons[wanted] is not None:
        raise SettingsError(f"--kernels {wanted} cannot run: {reasons[wanted]}; or use auto")
    return wanted, "asked for"


def choose_kernels(wanted: str, num_threads: int, directory: Path = DIRECTORY) -> Kernels | None:
    """Those picked, with their threads, and one log line; None stands for torch."""
    name, why = pick(wanted, directory)
    # without the instructions a machine is slow by nature, without a library by mishap
    mishap = wanted == "auto" and name == TORCH and INSTRUCTIONS["avx2"]()
    level, shown = (logging.WARNING, "torch, which is slower") if mishap else (logging.INFO, name)
    log.log(level, "kernels: %s (%s)", shown, why)
    return None if name == TORCH else Kernels(name, load(name, directory), num_threads)
