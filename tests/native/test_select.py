"""Which kernels are chosen, and what happens where they are not there."""

from __future__ import annotations

import importlib.machinery
import logging
import os
import shutil
import subprocess
import sys
from ctypes import c_int64, c_void_p, sizeof
from pathlib import Path

import pytest
import torch

from lmserve.engine.numerics import choose_numerics, find_kernels
from lmserve.errors import SettingsError
from lmserve.native import library, select
from lmserve.native.library import Kernels, Unusable, load
from lmserve.native.select import INSTRUCTIONS, TORCH, choose_kernels, runnable
from lmserve.settings import EngineSettings

ROOT = Path(__file__).resolve().parents[2]
SUFFIX = importlib.machinery.EXTENSION_SUFFIXES[0]
CPU = torch.device("cpu")
NOT_X86 = not INSTRUCTIONS["avx2"]()


def test_auto_takes_the_fastest_that_runs(caplog):
    caplog.set_level("INFO", logger=select.__name__)
    kernels = choose_kernels("auto", 1)
    fastest = next((name for name, reason in runnable().items() if reason is None), TORCH)
    assert (TORCH if kernels is None else kernels.name) == fastest
    (record,) = caplog.records
    assert record.getMessage().startswith(f"kernels: {fastest}")


@pytest.mark.parametrize("name", INSTRUCTIONS)
def test_what_is_asked_for_runs_or_is_refused(name):
    reason = runnable()[name]
    if reason is None:
        kernels = choose_kernels(name, 2)
        assert (kernels.name, kernels.num_threads) == (name, 2)
        kernels.close()
        kernels.close()
    else:
        with pytest.raises(SettingsError, match=f"--kernels {name} cannot run: .*; or use auto"):
            choose_kernels(name, 1)


def test_without_a_library_torch_computes(tmp_path, caplog):
    caplog.set_level("INFO", logger=select.__name__)
    assert choose_kernels("auto", 1, tmp_path) is None
    (record,) = caplog.records
    assert record.getMessage().startswith("kernels: torch")
    if NOT_X86:
        return
    assert "which is slower" in record.getMessage()
    assert "avx2: it was not built" in record.getMessage()
    assert record.levelno == logging.WARNING
    with pytest.raises(SettingsError, match="it was not built: install a C\\+\\+ compiler"):
        choose_kernels("avx2", 1, tmp_path)


def test_a_file_that_is_no_library_is_passed_over(tmp_path):
    (tmp_path / f"_avx2{SUFFIX}").write_text("not a library")
    with pytest.raises(Unusable, match="cannot be loaded"):
        load("avx2", tmp_path)
    assert choose_kernels("auto", 1, tmp_path) is None


def test_a_library_of_older_sources_is_passed_over(monkeypatch):
    if "avx2" not in [name for name, reason in runnable().items() if reason is None]:
        pytest.skip("no library runs here")
    monkeypatch.setattr(library, "ABI", library.ABI + 1)
    with pytest.raises(Unusable, match="older sources; install lmserve again"):
        load("avx2")
    assert choose_kernels("auto", 1) is None


@pytest.mark.parametrize(
    ("settings", "device"),
    [({"attention": "sdpa"}, CPU), ({}, torch.device("cuda:0"))],
)
def test_what_does_not_go_together_is_refused(settings, device):
    assert find_kernels(EngineSettings(**settings), device) is None
    assert find_kernels(EngineSettings(kernels="torch", **settings), device) is None
    with pytest.raises(
        SettingsError, match=r"--kernels avx2 does not go with --(attention|device)"
    ):
        find_kernels(EngineSettings(kernels="avx2", **settings), device)


def test_the_cache_is_float16_unless_float32_is_asked_for():
    for kernels in ("auto", "torch"):
        exact = choose_numerics(EngineSettings(device="cpu", dtype="float32", kernels=kernels))
        assert exact.kv_dtype == torch.float32
        numerics = choose_numerics(EngineSettings(device="cpu", kernels=kernels))
        native = numerics.kernels is not None
        assert numerics.kv_dtype == (torch.float16 if native else numerics.dtype)


def test_the_structs_are_those_of_the_header(tmp_path):
    """Sizes and last offsets, as the compiler sees them."""
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    structs = {
        "lms_weight": (library.Weight, "bias"),
        "lms_cache_shape": (library.CacheForm, "reserved"),
        "lms_batch": (library.Batch, "tables"),
        "lms_attention_options": (library.Options, "reserved"),
        "lms_layer": (library.Layer, "values"),
        "lms_decoder": (library.Decoder, "layers"),
    }
    source = "#include <cstddef>\n#include <cstdio>\n"
    source += f'#include "{ROOT / "lmserve/native/src/api.h"}"\nint main() {{\n'
    for name, (_, last) in structs.items():
        source += f'std::printf("%zu %zu\\n", sizeof({name}), offsetof({name}, {last}));\n'
    (tmp_path / "sizes.cpp").write_text(source + "}\n")
    program = str(tmp_path / "sizes")
    subprocess.run([compiler, str(tmp_path / "sizes.cpp"), "-o", program], check=True, timeout=50)
    told = subprocess.run([program], check=True, capture_output=True, text=True, timeout=10).stdout
    ours = [f"{sizeof(each)} {getattr(each, last).offset}" for each, last in structs.values()]
    assert told.split("\n")[:-1] == ours
    assert sizeof(c_int64) == sizeof(c_void_p) == 8


def test_threads_end_with_their_kernels(kernels):
    def num_threads() -> int:
        return len(os.listdir("/proc/self/task"))

    if sys.platform != "linux":
        pytest.skip("threads are counted in /proc")
    before = num_threads()
    made = Kernels(kernels.name, kernels.library, 3)
    assert num_threads() == before + 2
    del made
    assert num_threads() == before


def test_an_install_without_a_compiler_succeeds(tmp_path):
    """The very command that pip runs, on a copy of the sources."""
    shutil.copy(ROOT / "setup.py", tmp_path)
    shutil.copytree(ROOT / "lmserve/native/src", tmp_path / "lmserve/native/src")
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "copy"\nversion = "0"\n')
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    environ = os.environ | {"CXX": "/bin/false", "CC": "/bin/false"}
    done = subprocess.run(
        command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=50
    )
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.rglob("*.so"))
    if not NOT_X86:
        assert "building extension" in done.stdout + done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit of memory")
def test_more_threads_than_the_system_has_are_refused(kernels):
    code = f"""
import ctypes, resource
library = ctypes.CDLL({kernels.library._name!r})
library.lms_pool_new.restype = ctypes.c_void_p
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
assert library.lms_pool_new(100_000) is None
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)
