"""Records what a run does on the CPU, to repeat it, and refuses what CUDA could not record.

Each call of an operation is noted with its very arguments and outputs. To repeat one that made
new tensors its results are copied into those that it made when recorded; one that wrote in place
is called again; a view is still one; uninitialised memory is uninitialised again.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from lmserve.device.dispatch import Watcher, storage_of, tensors_of
from lmserve.device.launches import noted_by

aten = torch.ops.aten
COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd
MASKS = (torch.bool, torch.uint8)

UNINITIALISED = {
    *(aten.empty.memory_format, aten.empty_strided.default, aten.empty_like.default),
    *(aten.new_empty.default, aten.new_empty_strided.default, aten.empty_permuted.default),
}
# On CUDA these read on the host, though their tags do not say so.
READERS = {aten.multinomial.default, aten.bincount.default}
MOVERS = {
    *(aten.set_.source_Tensor, aten.set_.source_Storage, aten.set_.default),
    *(aten.set_.source_Storage_storage_offset, aten.resize_.default, aten.resize_as_.default),
}

# Not seen by the dispatcher where the tensor is on the host already.
HOST_READS = {
    *(Tensor.item, Tensor.tolist, Tensor.numpy, Tensor.cpu, Tensor.pin_memory),
    *(Tensor.__bool__, Tensor.__int__, Tensor.__float__, Tensor.__index__, Tensor.__array__),
}


class CaptureError(RuntimeError):
    """A run did what a CUDA graph could not repeat, or what waits for the device."""


class Recorder(Watcher):
    """`calls` repeat what was done while `recording()`. One that only watches lets pass what goes
    up and comes down by the device."""

    def __init__(self, *, only_watches: bool = False) -> None:
        super().__init__()
        self.only_watches = only_watches
        self.calls: list[Callable[[], None]] = []
        self.setting_number = False  # `tensor[...] = number` fills, on the device
        self.resting = False  # inside a launch
        self._made: list[Tensor] = []
        self._kept: list[Tensor] = []
        self._known: set[int] = set()  # storages
        self._found: list[tuple[str, Tensor]] = []  # arguments that no call made, and of what

    @contextmanager
    def recording(self) -> Iterator[None]:
        with _young_objects() as young:
            with noted_by(self), _HostCalls(self), self:
                yield
            new = young()
        for name, tensor in self._found:
            if id(tensor) in new:
                raise CaptureError(f"{name} of a tensor made of the host's memory")
        self._found.clear()

    def spoil(self) -> None:
        """Nothing was computed yet: a capture does not run."""
        for tensor in self._made:
            poison(tensor)

    def launched(
        self, function: Callable[..., None], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        args, kwargs = tree_map(lambda leaf: leaf, (args, kwargs))  # lists as they are now
        self._look_at(function.__name__, (args, kwargs))
        with self.at_rest():
            result: object = function(*args, **kwargs)  # type: ignore[func-returns-value]
        if result is not None:
            raise TypeError(f"{function.__name__} is a launch, and must return nothing")
        self._add(lambda: function(*args, **kwargs))

    @contextmanager
    def at_rest(self) -> Iterator[None]:
        """What is done in here is neither looked at nor noted."""
        before, self.resting = self.resting, True
        try:
            with noted_by(None):
                yield
        finally:
            self.resting = before

    def know(self, tensor: Tensor) -> Tensor:
        """It was made in an allowed way."""
        self._known.add(storage_of(tensor))
        self._kept.append(tensor)  # or another might get its place
        return tensor

    def _add(self, call: Callable[[], None]) -> None:
        if not self.only_watches:
            self.calls.append(call)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.resting:
            return func(*args, **kwargs)
        self._check(func, args, kwargs)
        if func.has_kernel_for_dispatch_key(COMPOSITE):  # whole only in inference mode
            with self:  # by torch's own kernel: `decompose` prefers twins in Python to some
                return func._op_dk(COMPOSITE, *args, **kwargs)
        out = func(*args, **kwargs)
        self._note(func, args, kwargs, out)
        return out

    def _check(self, func: Any, args: Any, kwargs: Any) -> None:
        if func in (aten.index.Tensor, aten.index_put_.default, aten.index_put.default):
            if any(index is not None and index.dtype in MASKS for index in args[1]):
                raise CaptureError(f"{func} by a mask: how much it selects is read on the host")
        elif func is aten.lift_fresh.default:
            if not (self.setting_number and args[0].dim() == 0):
                raise CaptureError("a tensor made of the host's numbers")
        elif torch.Tag.data_dependent_output in func.tags or func in READERS:
            raise CaptureError(f"{func} reads on the host")
        elif torch.Tag.dynamic_output_shape in func.tags and kwargs.get("output_size") is None:
            raise CaptureError(f"{func}: the size of its result is read on the host")
        elif func in MOVERS:
            raise CaptureError(f"{func} changes where a tensor lies")

    def _note(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        given = self._look_at(func.name(), (args, kwargs))
        made = [
            (at, leaf)
            for at, leaf in enumerate(tree_leaves(out))
            if isinstance(leaf, Tensor) and storage_of(leaf) not in given
        ]
        self._made += [tensor for _, tensor in made]
        self._known.update(storage_of(tensor) for _, tensor in made)
        if func in UNINITIALISED:
            for _, tensor in made:
                self._add(partial(poison, tensor))
                poison(tensor)
        elif made or func._schema.is_mutable:
            self._add(_Call(func, args, kwargs, made))

    def _look_at(self, name: str, arguments: Any) -> set[int]:
        """The storages of a call's arguments."""
        tensors = tensors_of(arguments)
        for tensor in tensors:
            if storage_of(tensor) not in self._known and tensor.dim():  # a number may come alone
                self._known.add(storage_of(tensor))
                self._found.append((name, tensor))
        return {storage_of(tensor) for tensor in tensors}


class _Call:
    """One operation, and where its results belong."""

    def __init__(self, func: Any, args: Any, kwargs: Any, made: list[tuple[int, Tensor]]):
        self._func, self._made = func, made
        self._args, self._kwargs = tree_map(lambda leaf: leaf, (args, kwargs))

    def __call__(self) -> None:
        results = tree_leaves(self._func(*self._args, **self._kwargs))
        for at, tensor in self._made:
            tensor.copy_(results[at])


class _HostCalls(TorchFunctionMode):
    """Refuses calls that never reach the dispatcher, or look harmless there."""

    def __init__(self, recorder: Recorder):
        super().__init__()
        self._recorder = recorder

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._recorder.resting:
            return func(*args, **kwargs)
        name = getattr(func, "__name__", str(func))
        if func in HOST_READS or (func is Tensor.to and _names_cpu(args, kwargs)):
            raise CaptureError(f"{name} reads on the host")
        if func is not Tensor.__setitem__ or isinstance(args[2], Tensor):
            return func(*args, **kwargs)
        self._recorder.setting_number = True
        try:
            return func(*args, **kwargs)
        finally:
            self._recorder.setting_number = False


@contextmanager
def _young_objects() -> Iterator[Callable[[], set[int]]]:
    """Ids of the objects that came to be in here: with the collector off they stay the youngest."""
    was_enabled = gc.isenabled()
    gc.disable()
    before = {id(each) for each in gc.get_objects(generation=0)}
    try:
        yield lambda: {id(each) for each in gc.get_objects(generation=0)} - before
    finally:
        if was_enabled:
            gc.enable()


def _names_cpu(args: Any, kwargs: Any) -> bool:
    return any(isinstance(each, str) and each == "cpu" for each in (*args[1:], *kwargs.values()))


def poison(tensor: Tensor) -> None:
    """Numbers that whoever reads them notices."""
    if tensor.dtype.is_floating_point and tensor.dtype.itemsize == 1:
        tensor.view(torch.uint8).fill_(0x7F)  # NaN in both
    elif tensor.dtype.is_floating_point or tensor.dtype.is_complex:
        tensor.fill_(torch.nan)
    elif tensor.dtype != torch.bool:
        tensor.fill_(torch.iinfo(tensor.dtype).min if tensor.dtype.is_signed else 0xA5)
