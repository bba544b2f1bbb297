"""The kernels that this machine can run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from lmserve.native.library import Kernels, load
from lmserve.native.select import INSTRUCTIONS, runnable

torch.set_num_threads(1)  # what torch computes here is tiny


@pytest.fixture(scope="package", params=INSTRUCTIONS)
def kernels(request: pytest.FixtureRequest) -> Iterator[Kernels]:
    reason = runnable()[request.param]
    if reason is not None:
        pytest.skip(f"{request.param}: {reason}")
    made = Kernels(request.param, load(request.param), 2)
    yield made
    made.close()
