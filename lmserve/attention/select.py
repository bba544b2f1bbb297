"""Which attention runs, and why, in one log line."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from lmserve.attention.base import AttentionBackend, AttentionOptions, CacheShape
from lmserve.attention.cpu import CpuAttention
from lmserve.attention.flash import FlashAttention
from lmserve.attention.flash3 import Flash3Attention
from lmserve.attention.flash4 import Flash4Attention
from lmserve.attention.native import NativeAttention
from lmserve.attention.paged import PagedAttention
from lmserve.attention.paged_torch import PagedTorchAttention
from lmserve.attention.probe import probe
from lmserve.attention.sdpa import SdpaAttention
from lmserve.attention.triton_paged import TritonAttention
from lmserve.attention.varlen import PagedVarlenAttention, VarlenAttention
from lmserve.errors import SettingsError
from lmserve.native.library import Kernels

log = logging.getLogger(__name__)

# On a device, the fastest first; what shares a name, likewise.
ON_DEVICE: tuple[type[AttentionBackend], ...] = (
    Flash3Attention,
    Flash4Attention,
    FlashAttention,
    PagedVarlenAttention,
    VarlenAttention,
    TritonAttention,
    PagedTorchAttention,
    SdpaAttention,
)
ON_CPU: tuple[type[AttentionBackend], ...] = (
    NativeAttention,
    CpuAttention,
    SdpaAttention,
    PagedTorchAttention,
    TritonAttention,
)


def select_attention(
    name: str,
    shape: CacheShape,  # block size 0: what suits the backend
    dtype: torch.dtype,  # of the KV cache
    device: torch.device,
    deterministic: bool,
    kernels: Kernels | None = None,
    *,
    options: Sequence[AttentionOptions] = (),  # of the model's layers, where they are known
    paged: bool = False,  # the model writes a paged cache itself
) -> AttentionBackend:
    """The backend of that name, or for `auto` the fastest that passes its probe. Its shape has
    the block size."""
    needs = Needs(shape, dtype, device, deterministic, kernels, options, paged)
    passed_over: list[str] = []
    for kind in _kinds(name, needs):
        made = needs.refusal(kind) or _made(kind, needs, probed=name == "auto" or not needs.on_cpu)
        if isinstance(made, AttentionBackend):
            why = "it passed its probe" if name == "auto" else "asked for"
            _tell(made, "; ".join([why, *passed_over]))
            return made
        passed_over.append(f"{_title(kind)}: {made}")
    if name != "auto":
        raise SettingsError(f"--attention {passed_over[-1]}; use auto")
    raise SettingsError(f"no attention backend works on this device; {'; '.join(passed_over)}")


@dataclass(frozen=True, slots=True)
class Needs:
    """What attention is selected for."""

    shape: CacheShape
    dtype: torch.dtype
    device: torch.device
    deterministic: bool
    kernels: Kernels | None
    options: Sequence[AttentionOptions]
    paged: bool

    @property
    def on_cpu(self) -> bool:
        return self.device.type == "cpu"

    def build(self, kind: type[AttentionBackend]) -> AttentionBackend:
        shape = self.shape_for(kind)
        if kind is NativeAttention:
            assert self.kernels is not None
            return NativeAttention(shape, self.dtype, self.kernels)
        if kind is CpuAttention:
            return CpuAttention(shape, self.dtype, self.device, self.deterministic)
        return kind(shape, self.dtype, self.device)

    def shape_for(self, kind: type[AttentionBackend]) -> CacheShape:
        return replace(self.shape, block_size=self.shape.block_size or kind.default_block_size())

    def refusal(self, kind: type[AttentionBackend]) -> str | None:
        if kind is NativeAttention and self.kernels is None:
            return "it needs --kernels amx, avx512 or avx2"
        if self.paged and not issubclass(kind, PagedAttention):
            return "its cache is not paged, as these --kernels need"
        return kind.refusal(self.shape_for(kind), self.dtype, self.device, self.options)


def _kinds(name: str, needs: Needs) -> list[type[AttentionBackend]]:
    """The candidates, of which `auto` leaves out what cannot be for this model anyway."""
    kinds, other = (ON_CPU, ON_DEVICE) if needs.on_cpu else (ON_DEVICE, ON_CPU)
    if name == "auto":
        return [kind for kind in kinds if _worth_trying(kind, needs)]
    found = [kind for kind in kinds if kind.name == name]
    if found:
        return found
    if any(kind.name == name for kind in other):
        raise SettingsError(f"--attention {name} does not run on {needs.device.type}; use auto")
    names = ", ".join(dict.fromkeys(kind.name for kind in kinds))
    raise SettingsError(f"attention {name!r} is unknown; choose auto, {names}")


def _worth_trying(kind: type[AttentionBackend], needs: Needs) -> bool:
    if kind is NativeAttention and needs.kernels is None:
        return False
    if kind is TritonAttention and needs.on_cpu:  # interpreted: by name alone
        return False
    return not needs.paged or issubclass(kind, PagedAttention)


def _made(kind: type[AttentionBackend], needs: Needs, *, probed: bool) -> AttentionBackend | str:
    """A backend, or why it cannot be."""
    if not probed:
        return needs.build(kind)
    try:
        backend = needs.build(kind)
        probe(backend, needs.options)
    except Exception as error:  # whatever a kernel raises, the next one may do
        lines = str(error).splitlines()
        return f"it failed its probe: {lines[0] if lines else type(error).__name__}"
    return backend


def _tell(backend: AttentionBackend, why: str) -> None:
    log.info(
        "attention: %s on %s, blocks of %d tokens (%s)",
        _title(type(backend)),
        backend.device,
        backend.shape.block_size,
        why,
    )


def _title(kind: type[AttentionBackend]) -> str:
    return " ".join(filter(None, (kind.name, kind.remark)))
