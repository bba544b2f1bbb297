"""Kernels under Triton's interpreter where there is no GPU, with numbers as a GPU has them."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

torch.set_num_threads(1)
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "models")]


@pytest.fixture(autouse=True)
def numbers_as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The interpreter truncates to bfloat16, loses carries of float8, and numpy, which it computes
    with, warns of what is not finite."""
    if torch.cuda.is_available():
        yield
        return
    from rounding import convert
    from triton.runtime import interpreter

    monkeypatch.setattr(interpreter, "_convert_float", convert)
    with np.errstate(all="ignore"), warnings.catch_warnings():
        # of Triton 3.6, where a loop ends with a number that is given
        warnings.filterwarnings("ignore", "Conversion of an array with ndim > 0")
        yield
