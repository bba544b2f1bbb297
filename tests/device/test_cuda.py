"""`torch.cuda` is used in one place; and what that does around a capture, without a GPU."""

from __future__ import annotations

import ast
import contextlib
import gc
from functools import partial
from pathlib import Path

import pytest
import torch

import lmserve
from lmserve.device.cuda import CudaDevice

PACKAGE = Path(lmserve.__file__).parent
SOURCES = {path: path.read_text() for path in sorted(PACKAGE.rglob("*.py"))}


def uses_cuda(tree: ast.AST) -> bool:
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr == "cuda":
            if isinstance(node.value, ast.Name) and node.value.id == "torch":
                return True
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("torch.cuda"):
            return True
        if isinstance(node, ast.Import) and any(
            n.name.startswith("torch.cuda") for n in node.names
        ):
            return True
    return False


def imports_at_once(tree: ast.Module, name: str) -> bool:
    """Outside of functions."""
    return any(
        isinstance(node, ast.ImportFrom) and node.module == name
        for statement in tree.body
        if not isinstance(statement, ast.FunctionDef)
        for node in ast.walk(statement)
    )


def test_nobody_else_uses_torch_cuda():
    near = {path: text for path, text in SOURCES.items() if "cuda" in text and "torch" in text}
    found = [path for path, text in near.items() if uses_cuda(ast.parse(text))]
    assert [str(path.relative_to(PACKAGE)) for path in found] == ["device/cuda.py"]


def test_nobody_imports_it_before_a_device_is_chosen():
    name = "lmserve.device.cuda"
    near = {path: text for path, text in SOURCES.items() if name in text}
    assert PACKAGE / "device" / "select.py" in near
    assert [path for path, text in near.items() if imports_at_once(ast.parse(text), name)] == []
    assert imports_at_once(ast.parse(Path(__file__).read_text()), name)


class NoGraph:
    """Of CUDAGraph, the order of calls."""

    calls: list[str] = []

    def capture_begin(self, pool: object, capture_error_mode: str) -> None:
        self.calls.append(f"begin {pool} {capture_error_mode}")

    def capture_end(self) -> None:
        self.calls.append("end")
        if self.calls[-2] == "failing":
            raise RuntimeError("the capture is invalid")

    def replay(self) -> None:
        self.calls.append(f"replay {torch.is_inference_mode_enabled()}")


class NoStream:
    def __init__(self, device: object = None):
        self.device = device

    def wait_stream(self, other: NoStream) -> None:
        NoGraph.calls.append("wait")


def told(name: str, index: int, pool: object) -> None:
    NoGraph.calls.append(f"{name} {index} {pool}")


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> CudaDevice:
    monkeypatch.setattr(NoGraph, "calls", [])
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch.cuda, "Stream", NoStream)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", NoGraph)
    monkeypatch.setattr(torch.cuda, "current_stream", NoStream)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: "its own")
    for name in ("endAllocateToPool", "releasePool"):
        monkeypatch.setattr(torch._C, f"_cuda_{name}", partial(told, name), raising=False)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    return CudaDevice(torch.device("cuda"))


def test_a_capture_warms_up_first_and_collects_no_garbage(cuda):
    def run() -> str:
        NoGraph.calls.append(f"run {gc.isenabled()} {torch.is_inference_mode_enabled()}")
        return "out"

    graph = cuda.capture(run, "pool")
    graph.replay()
    assert graph.out == "out"
    assert NoGraph.calls == [
        *("run True True", "wait", "begin pool thread_local", "run False True", "end", "wait"),
        "replay True",
    ]
    assert gc.isenabled()


def test_a_capture_that_fails_is_ended_and_tells_what_failed(cuda):
    def run() -> None:
        NoGraph.calls.append("failing")
        if NoGraph.calls.count("failing") == 2:
            raise ValueError("reads on the host")

    with pytest.raises(ValueError, match="reads on the host"):
        cuda.capture(run)
    # the allocator, which torch leaves as it is within a capture
    assert NoGraph.calls[-3:] == ["end", "endAllocateToPool 0 its own", "releasePool 0 its own"]
    assert gc.isenabled()


def test_libraries_say_that_memory_is_out_in_their_own_words(cuda):
    assert cuda.is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when"))
    assert cuda.is_out_of_memory(RuntimeError("CUDA error: out of memory"))
    assert not cuda.is_out_of_memory(RuntimeError("CUDA error: an illegal memory access"))
    assert not cuda.is_out_of_memory(RuntimeError("out of resource: shared memory"))
