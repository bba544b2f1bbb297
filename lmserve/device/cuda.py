"""A CUDA device. The only module that uses `torch.cuda`.

Everything runs on torch's current stream, in order, so that no tensor needs a stream of its own
and an event after the last copy says that a step is done. Only capturing has a stream beside it,
for the default one cannot be captured; nothing runs there. And loading, before the first step, has
one for each buffer.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor

from lmserve.device.base import Device, Fetched, Graph, Numbers, Peak, T, as_numpy, torch_type
from lmserve.device.staging import Staging

OUT_OF_MEMORY = ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED")  # said by drivers and libraries


def num_devices() -> int:
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def device_names() -> list[str]:
    return [torch.cuda.get_device_name(index) for index in range(num_devices())]


class CudaDevice(Device):
    def __init__(self, torch_device: torch.device):
        self.torch_device = torch.device("cuda", torch_device.index or 0)
        torch.cuda.set_device(self.torch_device)  # Triton and flash-attn launch on the current one
        self._side = torch.cuda.Stream(self.torch_device)
        self._is_capturing = False

    def upload(self, numbers: Numbers) -> Tensor:
        """By pinned memory of torch's own caching allocator: it gives a piece out again only when
        the copy out of it is done."""
        self._refuse_while_capturing("upload")
        given = as_numpy(numbers)
        pinned = torch.empty(given.shape, dtype=torch_type(given), pin_memory=True)
        pinned.numpy()[...] = given
        return pinned.to(self.torch_device, non_blocking=True)

    def staging(self, num_bytes: int) -> Staging:
        return _Staging(self.torch_device, num_bytes)

    def fetch(self, tensors: Sequence[Tensor]) -> Fetched:
        self._refuse_while_capturing("fetch")
        copies = []
        for tensor in tensors:
            pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            copies.append(pinned.copy_(tensor, non_blocking=True))
        event = torch.cuda.Event()
        event.record()
        return _Fetched(copies, event)

    def capture(self, run: Callable[[], T], pool: Any = None) -> Graph[T]:
        """Not by `torch.cuda.graph`: that waits for the device and returns its cached memory first,
        while here graphs are captured between the steps of a server at work."""
        graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self.torch_device)
        pool = torch.cuda.graph_pool_handle() if pool is None else pool
        with torch.inference_mode():
            run()  # compiles kernels and sets libraries up, which cannot be captured
            self._side.wait_stream(current)
            with self._capturing(), torch.cuda.stream(self._side):
                # other threads may go on using the device
                graph.capture_begin(pool=pool, capture_error_mode="thread_local")
                try:
                    out = run()
                    graph.capture_end()
                except BaseException:
                    self._abandon(graph, pool)
                    raise
            current.wait_stream(self._side)
        return _Graph(graph, out)

    def _abandon(self, graph: torch.cuda.CUDAGraph, pool: Any) -> None:
        """Ends a capture that failed. Of one that `run` has spoilt torch's allocator is not told
        that it has ended: it would give no cached memory back ever after."""
        try:
            graph.capture_end()
        except Exception:
            with suppress(RuntimeError):  # it was told, and what failed came later
                torch._C._cuda_endAllocateToPool(self.torch_device.index, pool)
                torch._C._cuda_releasePool(self.torch_device.index, pool)

    @contextmanager
    def _capturing(self) -> Iterator[None]:
        """No garbage collection: it might free what belongs to CUDA, which spoils the capture."""
        was_enabled = gc.isenabled()
        gc.disable()
        self._is_capturing = True
        try:
            yield
        finally:
            self._is_capturing = False
            if was_enabled:
                gc.enable()

    def _refuse_while_capturing(self, what: str) -> None:
        if self._is_capturing:
            raise RuntimeError(f"{what} while a graph is captured: a replay would not repeat it")

    def graph_pool(self) -> Any:
        return torch.cuda.graph_pool_handle()

    @contextmanager
    def measure_peak(self) -> Iterator[Peak]:
        """Of what tensors took, or of what the allocator had to reserve for them if that is more:
        the difference is what is lost between them."""
        device, peak = self.torch_device, Peak()
        self.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        allocated, reserved = (
            torch.cuda.memory_allocated(device),
            torch.cuda.memory_reserved(device),
        )
        try:
            yield peak
        finally:
            self.synchronize()
            peak.num_bytes = max(
                torch.cuda.max_memory_allocated(device) - allocated,
                torch.cuda.max_memory_reserved(device) - reserved,
            )

    def free_bytes(self) -> int:
        device = self.torch_device
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached

    def release_cached(self) -> None:
        torch.cuda.empty_cache()

    def synchronize(self) -> None:
        torch.cuda.synchronize(self.torch_device)

    @contextmanager
    def never_waiting(self) -> Iterator[None]:
        before = torch.cuda.get_sync_debug_mode()
        with warnings.catch_warnings():  # that it does not see all that waits
            warnings.simplefilter("ignore")
            torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode(before)

    def is_out_of_memory(self, error: BaseException) -> bool:
        if isinstance(error, torch.OutOfMemoryError):
            return True
        return isinstance(error, RuntimeError) and any(text in str(error) for text in OUT_OF_MEMORY)

    def has_bfloat16(self) -> bool:
        return torch.cuda.is_bf16_supported(including_emulation=False)

    def capability(self) -> tuple[int, int]:
        return torch.cuda.get_device_capability(self.torch_device)

    def num_multiprocessors(self) -> int:
        return torch.cuda.get_device_properties(self.torch_device).multi_processor_count


class _Staging(Staging):
    """Pinned, with a stream of its own: whoever wrote the targets before is waited for once."""

    def __init__(self, device: torch.device, num_bytes: int):
        with torch.cuda.device(device):  # of this thread: pinning would make a context on another
            self.memory = torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True)
            self._stream = torch.cuda.Stream(device)
            self._stream.wait_stream(torch.cuda.default_stream(device))
            self._done = torch.cuda.Event(blocking=True)  # leaves the core to other readers

    def send(self, num_bytes: int, dtype: torch.dtype, target: Tensor) -> None:
        values = self.memory[:num_bytes].view(dtype)
        with torch.cuda.stream(self._stream):
            if dtype != target.dtype:  # converted there: by itself torch would convert here
                values = values.to(target.device, non_blocking=True)
            target.copy_(values, non_blocking=True)
            self._done.record(self._stream)

    def wait(self) -> None:
        self._done.synchronize()


class _Fetched(Fetched):
    def __init__(self, copies: list[Tensor], event: torch.cuda.Event):
        self._copies = copies
        self._event = event

    def wait(self) -> list[Tensor]:
        self._event.synchronize()
        return self._copies


class _Graph(Graph[T]):
    def __init__(self, graph: torch.cuda.CUDAGraph, out: T):
        self.out = out
        self._graph = graph

    @torch.inference_mode()  # as it was captured: torch may write its random state, made meanwhile
    def replay(self) -> None:
        self._graph.replay()
