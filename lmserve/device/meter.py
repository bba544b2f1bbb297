"""Counts the bytes of tensors made on the CPU, and refuses what is beyond a limit."""

from __future__ import annotations

from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from lmserve.device.dispatch import Watcher, storage_of, tensors_of


class Meter(Watcher):
    """As a context. What an operation takes and gives back by itself is not seen."""

    def __init__(self, limit_bytes: int | None = None):
        super().__init__()
        self.limit_bytes = limit_bytes
        self.peak_bytes = 0
        self._alive: dict[StorageWeakRef, int] = {}

    @property
    def num_bytes(self) -> int:
        """Of the tensors made in here that are still alive."""
        self._alive = {ref: size for ref, size in self._alive.items() if not ref.expired()}
        return sum(self._alive.values())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        self._count(out, {storage_of(tensor) for tensor in tensors_of((args, kwargs))})
        num_bytes = self.num_bytes
        if self.limit_bytes is not None and num_bytes > self.limit_bytes:
            del out  # or the traceback would hold it
            raise torch.OutOfMemoryError(f"{func}: {num_bytes} of {self.limit_bytes} bytes")
        self.peak_bytes = max(self.peak_bytes, num_bytes)
        return out

    def _count(self, out: Any, known: set[int]) -> None:
        for tensor in tensors_of(out):
            if storage_of(tensor) not in known:
                storage = tensor.untyped_storage()
                self._alive[StorageWeakRef(storage)] = storage.nbytes()
