"""Host memory from which a device fetches weights as they are read."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch


class Staging(ABC):
    """A buffer of one thread: written, sent, and written again after `wait`."""

    memory: torch.Tensor  # uint8, on the host

    @abstractmethod
    def send(self, num_bytes: int, dtype: torch.dtype, target: torch.Tensor) -> None:
        """Begins to copy the first `num_bytes`, values of `dtype`, to all of `target`, which is
        contiguous, of one dimension, and may have another dtype."""

    @abstractmethod
    def wait(self) -> None:
        """Until what was sent is in its place, and `memory` may be written again."""


class HostStaging(Staging):
    """For targets on the host. It copies when it is waited for: what is written too early, or
    never waited for, shows here as it would on a device."""

    def __init__(self, num_bytes: int):
        self.memory = torch.empty(num_bytes, dtype=torch.uint8)
        self._sent: tuple[torch.Tensor, torch.Tensor] | None = None

    def send(self, num_bytes: int, dtype: torch.dtype, target: torch.Tensor) -> None:
        self._sent = self.memory[:num_bytes].view(dtype), target

    def wait(self) -> None:
        if self._sent is not None:
            values, target = self._sent
            target.copy_(values)
            self._sent = None
