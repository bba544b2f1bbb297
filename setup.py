"""The native kernels. All else of the package is in pyproject.toml.

One source, built once for each set of instructions; loaded with ctypes, so neither library is an
importable module. Without a compiler the install goes on without them, and torch computes.
"""

import platform
import sys
from pathlib import Path

from setuptools import Extension, setup

SOURCES = Path("lmserve/native/src")
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vnni"]
FLAGS = {
    "_avx2": AVX2,
    "_avx512": AVX512,
    "_amx": [*AVX512, "-mamx-tile", "-mamx-int8"],  # which Linux alone gives out
}
# no contraction: the bits of a row must not depend on which loop the compiler made of it
COMMON = ["-std=c++20", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fvisibility=hidden"]
COMMON += ["-fvisibility-inlines-hidden", "-pthread", "-g0"]
COMMON += ["-Wno-uninitialized", "-Wno-maybe-uninitialized"]  # of the compiler's own headers


def libraries() -> list[Extension]:
    if platform.machine() not in ("x86_64", "AMD64") or sys.platform not in ("linux", "darwin"):
        return []
    depends = sorted(str(path) for path in SOURCES.glob("*.h*"))
    return [
        Extension(
            f"lmserve.native.{name}",
            [str(SOURCES / "kernels.cpp")],
            depends=depends,
            extra_compile_args=COMMON + flags,
            extra_link_args=["-pthread"],
            language="c++",
            optional=True,
        )
        for name, flags in FLAGS.items()
    ]


setup(ext_modules=libraries())
