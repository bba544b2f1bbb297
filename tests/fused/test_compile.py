"""The kernels compile for an H100, and hold what they work on in registers."""

from __future__ import annotations

import pytest

from tests.kernels.compile import MAX_SHARED_BYTES, compile_for_h100


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_launch_compiles_for_an_h100():
    compiled = compile_for_h100("tests.fused.triton_launches:everything", timeout_s=600)
    names = {f"{name}_kernel" for name in ("norm", "rope_write", "gate", "row_product")}
    assert {each.name for each in compiled} == names
    for each in compiled:
        assert each.shared_bytes <= MAX_SHARED_BYTES
        assert each.spilled_bytes <= 16, each  # a number or two
