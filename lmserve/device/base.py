"""What a device is to the runner: copies that nobody waits for, graphs, memory.

The engine runs on one thread and one stream: what is asked of a device happens in that order,
some time after the call. `Fetched.wait` is where the host waits.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from lmserve.device.staging import Staging

T = TypeVar("T")
Numbers = array | np.ndarray
TORCH_TYPES = {
    np.dtype(code): torch.from_numpy(np.empty(0, dtype=code)).dtype for code in "?bBhilqefd"
}
ALIGNMENT = 16  # in bytes, of each array in a shared upload: what a kernel's wide loads need


class Fetched(ABC):
    """Copies to the host that have begun."""

    @abstractmethod
    def wait(self) -> list[Tensor]:
        """The tensors on the host, once they are there. Waits for nothing that was asked of the
        device after the fetch."""


class Graph(ABC, Generic[T]):
    """What one run did on the device, to be done again on the very same tensors."""

    out: T  # what the run returned: its tensors are written again by each replay

    @abstractmethod
    def replay(self) -> None: ...


@dataclass(slots=True)
class Peak:
    """Bytes taken beyond those held before, at most. Known when the measuring has ended."""

    num_bytes: int = 0


class Device(ABC):
    torch_device: torch.device

    @abstractmethod
    def upload(self, numbers: Numbers) -> Tensor:
        """A tensor of these numbers, of their type and shape. They may change once this returns."""

    def upload_together(self, arrays: Sequence[Numbers]) -> list[Tensor]:
        """The same of several, by one copy."""
        parts = [np.ascontiguousarray(as_numpy(numbers)) for numbers in arrays]
        starts, end = [], 0
        for part in parts:
            starts.append(end)
            end += -(-part.nbytes // ALIGNMENT) * ALIGNMENT
        packed = np.zeros(end, dtype=np.uint8)
        for start, part in zip(starts, parts, strict=True):
            packed[start : start + part.nbytes] = part.reshape(-1).view(np.uint8)
        flat = self.upload(packed)
        return [
            flat[start : start + part.nbytes].view(torch_type(part)).view(part.shape)
            for start, part in zip(starts, parts, strict=True)
        ]

    @abstractmethod
    def staging(self, num_bytes: int) -> Staging:
        """A buffer for the weights, of the calling thread, which may be any."""

    @abstractmethod
    def fetch(self, tensors: Sequence[Tensor]) -> Fetched:
        """Begins to copy what these hold once all that was asked before is done."""

    @abstractmethod
    def capture(self, run: Callable[[], T], pool: Any = None) -> Graph[T]:
        """Notes what `run` does on the device. It runs twice, once to warm up: what it writes
        must be its own (padding rows). Its outputs mean nothing before the first replay. It must
        not read on the host, nor make a tensor of the host's numbers."""

    @abstractmethod
    def graph_pool(self) -> Any:
        """Memory for graphs that share it, as those may that never replay at the same time. It is
        gone with the last of them; a capture that fails otherwise than by its size spoils it."""

    @abstractmethod
    def measure_peak(self) -> AbstractContextManager[Peak]: ...

    @abstractmethod
    def free_bytes(self) -> int:
        """What may still be taken, by tensors or by libraries."""

    @abstractmethod
    def release_cached(self) -> None:
        """Gives back memory that is kept for tensors to come."""

    @abstractmethod
    def synchronize(self) -> None:
        """Waits until everything is done. Not for the path of a step."""

    @abstractmethod
    def never_waiting(self) -> AbstractContextManager[None]:
        """What waits for the device raises in here: for tests of what must not."""

    @abstractmethod
    def is_out_of_memory(self, error: BaseException) -> bool: ...

    @abstractmethod
    def has_bfloat16(self) -> bool:
        """In hardware: emulated it is slower than float32."""

    def capability(self) -> tuple[int, int]:
        """CUDA's compute capability; (0, 0) where that means nothing."""
        return 0, 0

    def num_multiprocessors(self) -> int:
        """How many programs of a kernel run side by side."""
        return 1


def as_numpy(numbers: Numbers) -> np.ndarray:
    if isinstance(numbers, np.ndarray):
        return numbers
    return (
        np.frombuffer(numbers, dtype=numbers.typecode)
        if numbers
        else np.empty(0, dtype=numbers.typecode)
    )


def torch_type(numbers: np.ndarray) -> torch.dtype:
    return TORCH_TYPES[numbers.dtype]
