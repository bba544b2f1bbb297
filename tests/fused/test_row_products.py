"""What runs products with one row is measured, and checked."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from cases import DEVICE, TRITON, randn

from lmserve.device.select import device_for
from lmserve.fused.kernels import TritonOps
from lmserve.models.linear import DenseLinear, TiledLinear
from lmserve.models.row_products import RowLinear, fastest, seconds_on

OPS = TRITON
DENSE = [DenseLinear(randn(20, 60, seed=seed), None) for seed in (1, 2)]


def never(run: Callable[[], object]) -> float:
    raise AssertionError


@pytest.mark.parametrize(
    ("times", "chosen"), [([5, 4, 3], 1), ([5, 4, 4.5], 0), ([5, 4.99, 6], None), ([5, 6, 7], None)]
)
def test_the_fastest_is_taken(times, chosen):
    left = iter(times)
    got = fastest("qkv", DENSE, OPS, lambda run: next(left))
    if chosen is None:
        assert got == DENSE
        return
    assert [each.dense for each in got] == DENSE
    assert {each.tiling for each in got} == {OPS.row_tilings[chosen]}


def test_what_is_wrong_is_not_taken(monkeypatch, caplog):
    zeros = torch.zeros(1, 20, device=DEVICE)
    monkeypatch.setattr(TritonOps, "row_product", lambda self, *rest: zeros)
    assert fastest("qkv", DENSE, OPS, lambda run: 1.0) == DENSE
    assert caplog.text.count("is wrong") == len(OPS.row_tilings)


def test_what_is_tiled_or_quantised_is_left_alone():
    for other in (TiledLinear(DENSE[0].weight, None), torch.relu):
        assert fastest("qkv", [DENSE[0], other], OPS, never) == [DENSE[0], other]


def test_measured_as_decoding_runs():
    product = RowLinear(DENSE[0], OPS, OPS.row_tilings[0])
    x = randn(1, 60)
    assert seconds_on(device_for(DEVICE))(lambda: product(x)) > 0
