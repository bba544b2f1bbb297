"""Compiles the Triton kernels that a function launches for an H100, on a machine without a GPU.

The interpreter checks what a kernel computes, not what the compiler accepts. Here a driver that
only knows the card's name stands in: launch functions run as they are, on `meta` tensors of real
sizes, and every launch is compiled with exactly the specialisation that it would have there.

In its own process, as TRITON_INTERPRET is read when Triton is imported:

    compiled = compile_for_h100("tests.attention.triton_launches:decodes")

where `decodes` takes no arguments and calls launch functions. As a script it prints a table:

    python tests/kernels/compile.py tests.attention.triton_launches:decodes
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
MAX_SHARED_BYTES = 227 * 1024  # of one program on an H100


@dataclass(frozen=True, slots=True)
class Compiled:
    """One kernel as specialised for one launch."""

    name: str
    constants: dict[str, str]
    num_warps: int
    num_stages: int
    shared_bytes: int
    registers: int  # a thread
    spilled_bytes: int  # a thread: local memory
    wgmma: bool  # runs on Hopper's own tensor core instructions
    mma: bool  # on the older ones


def compile_for_h100(function: str, timeout_s: float = 300) -> list[Compiled]:
    """What `function` ("module:name") launches, compiled. Raises with the compiler's words."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    with tempfile.TemporaryDirectory() as directory:
        result = subprocess.run(
            [sys.executable, "-W", "ignore", __file__, function, "--json"],
            env=environment | {"TRITON_CACHE_DIR": directory, "PYTHONPATH": str(ROOT)},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )
    if result.returncode:
        raise RuntimeError(f"{function} does not compile:\n{result.stderr[-8000:]}")
    return [Compiled(**json.loads(line)) for line in result.stdout.splitlines()]


class _Driver:
    """As much of a driver as compiling takes."""

    def get_current_target(self):
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0


def _compile(function: str) -> list[Compiled]:
    import importlib

    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    driver.set_active(_Driver())
    found: dict[int, Compiled] = {}
    launch = JITFunction.run

    def compile_only(self, *args, grid, warmup, **kwargs):
        try:
            kernel = launch(self, *args, grid=grid, warmup=True, **kwargs)
        except Exception as error:
            raise RuntimeError(f"{self.__name__}: {error}") from error
        if id(kernel) not in found:  # Triton keeps it, one for each specialisation
            found[id(kernel)] = _describe(kernel, self.arg_names)
        return kernel

    JITFunction.run = compile_only
    module, name = function.split(":")
    getattr(importlib.import_module(module), name)()
    return list(found.values())


def _describe(kernel, arg_names: list[str]) -> Compiled:
    constants = {
        arg_names[path[0]]: str(value)
        for path, value in kernel.src.constants.items()
        if len(path) == 1
    }
    ptx, meta = kernel.asm["ptx"], kernel.metadata
    registers, local = _resources(kernel.asm["cubin"])
    return Compiled(
        name=meta.name,
        constants=constants,
        num_warps=meta.num_warps,
        num_stages=meta.num_stages,
        shared_bytes=meta.shared,
        registers=registers,
        spilled_bytes=local,
        wgmma="wgmma.mma_async" in ptx,
        mma="mma.sync" in ptx,
    )


def _resources(cubin: bytes) -> tuple[int, int]:
    """Registers and bytes of stack of a thread, as the bundled cuobjdump tells."""
    import triton

    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(tool), "--dump-resource-usage", file.name]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+).* LOCAL:(\d+)", told)
    assert found is not None, told
    registers, stack, local = map(int, found.groups())
    return registers, max(stack, local)


def _main() -> None:
    function, *options = sys.argv[1:]
    for each in _compile(function):
        sys.stdout.write((json.dumps(asdict(each)) if options else str(each)) + "\n")


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    _main()
