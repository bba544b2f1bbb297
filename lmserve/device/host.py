"""The CPU as a device, as strict as CUDA: what would fail or lie there does so here.

A graph repeats the calls of the run that was recorded, on its tensors. An upload is a copy; what
is fetched is not to be seen before it was waited for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor

from lmserve.device.base import Device, Fetched, Graph, Numbers, Peak, T, as_numpy
from lmserve.device.launches import active_recorder
from lmserve.device.meter import Meter
from lmserve.device.recorder import CaptureError, Recorder, poison
from lmserve.device.staging import HostStaging, Staging


class HostDevice(Device):
    """`room_bytes` is what tensors may take beneath `limited()`, and what is free at first."""

    def __init__(self, room_bytes: int = 2**40):
        self.torch_device = torch.device("cpu")
        self.room_bytes = room_bytes
        self.num_released = 0  # calls of release_cached

    def upload(self, numbers: Numbers) -> Tensor:
        with _crossing("upload") as recorder:
            tensor = torch.from_numpy(as_numpy(numbers).copy())
        return tensor if recorder is None else recorder.know(tensor)

    def staging(self, num_bytes: int) -> Staging:
        return HostStaging(num_bytes)

    def fetch(self, tensors: Sequence[Tensor]) -> Fetched:
        with _crossing("fetch"):
            return HostFetched(tensors)

    def capture(self, run: Callable[[], T], pool: Any = None) -> Graph[T]:
        recorder, pool = Recorder(), HostPool() if pool is None else pool
        with torch.inference_mode():
            run()
            with pool.capturing(), recorder.recording():
                out = run()
            recorder.spoil()
        graph = HostGraph(recorder.calls, out)
        pool.graphs.add(graph)
        return graph

    def graph_pool(self) -> Any:
        return HostPool()

    @contextmanager
    def measure_peak(self) -> Iterator[Peak]:
        peak = Peak()
        with Meter() as meter:
            try:
                yield peak
            finally:
                peak.num_bytes = meter.peak_bytes

    @contextmanager
    def limited(self) -> Iterator[Meter]:
        """Tensors made in here that exceed the room raise OutOfMemoryError, as CUDA's do."""
        with Meter(self.room_bytes) as meter:
            yield meter

    def free_bytes(self) -> int:
        return self.room_bytes

    def release_cached(self) -> None:
        self.num_released += 1

    def synchronize(self) -> None:
        pass

    @contextmanager
    def never_waiting(self) -> Iterator[None]:
        with Recorder(only_watches=True).recording():
            yield

    def is_out_of_memory(self, error: BaseException) -> bool:
        if isinstance(error, torch.OutOfMemoryError | MemoryError):
            return True
        return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)

    def has_bfloat16(self) -> bool:
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


class HostFetched(Fetched):
    def __init__(self, tensors: Sequence[Tensor]):
        self._values = [tensor.clone() for tensor in tensors]
        self.copies = [torch.empty_like(value) for value in self._values]  # as CUDA's pinned ones
        for copy in self.copies:
            poison(copy)

    @torch.inference_mode()
    def wait(self) -> list[Tensor]:
        if active_recorder() is not None:
            raise CaptureError("what was fetched is waited for")
        for copy, value in zip(self.copies, self._values, strict=True):
            copy.copy_(value)
        return self.copies


class HostGraph(Graph[T]):
    def __init__(self, calls: list[Callable[[], None]], out: T):
        self.out = out
        self._calls = calls

    @torch.inference_mode()
    def replay(self) -> None:
        with _crossing("replay"):
            for call in self._calls:
                call()


class HostPool:
    """Holds nothing, but refuses as CUDA's: once it is gone with its last graph, or spoilt."""

    def __init__(self) -> None:
        self.graphs: WeakSet[HostGraph[Any]] = WeakSet()  # alive
        self._is_new = True
        self._is_spoilt = False

    @contextmanager
    def capturing(self) -> Iterator[None]:
        if self._is_spoilt or not (self._is_new or self.graphs):
            raise CaptureError("this pool of graphs was spoilt, or went with the last of them")
        self._is_new = False
        try:
            yield
        except CaptureError:
            self._is_spoilt = True
            raise


@contextmanager
def _crossing(what: str) -> Iterator[Recorder | None]:
    """What no graph can hold; who only watches lets it pass."""
    recorder = active_recorder()
    if recorder is None:
        yield None
        return
    assert isinstance(recorder, Recorder)
    if not recorder.only_watches:
        raise CaptureError(f"{what} while a graph is captured: a replay would not repeat it")
    with recorder.at_rest():
        yield recorder
