"""Ops are chosen by a probe."""

from __future__ import annotations

import logging

import pytest
import torch
from cases import DEVICE

from lmserve.errors import SettingsError
from lmserve.fused.kernels import TritonOps
from lmserve.fused.select import select_ops


@pytest.mark.parametrize(("name", "chosen"), [("auto", "triton"), ("twins", "twins")])
def test_the_kernels_pass_their_probe(name, chosen):
    assert select_ops(name, torch.bfloat16, DEVICE).name == chosen


@pytest.mark.skipif(DEVICE.type != "cpu", reason="of the interpreter, whose kernels cannot overlap")
def test_kernels_that_cannot_overlap_run_one_after_the_other(caplog):
    with caplog.at_level(logging.INFO):
        ops = select_ops("triton", torch.float32, DEVICE, overlaps=True)
    assert isinstance(ops, TritonOps) and not ops.overlaps
    assert "one after the other, as else their probe failed" in caplog.text


def test_kernels_that_are_wrong_are_not_used(monkeypatch, caplog):
    monkeypatch.setattr(TritonOps, "norm", lambda self, x, norm: x.clone())
    with caplog.at_level(logging.WARNING):
        assert select_ops("auto", torch.float32, DEVICE).name == "twins"
    assert "its result is wrong" in caplog.text
    with pytest.raises(SettingsError, match="--kernels triton does not work"):
        select_ops("triton", torch.float32, DEVICE)


def test_without_a_gpu_kernels_asked_for_are_refused(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(SettingsError, match="--kernels triton needs a GPU; use auto, or twins"):
        select_ops("triton", torch.float32, torch.device("cpu"))
