"""Random weights, made on the device: nothing is read, answers are noise."""

from __future__ import annotations

import logging
from zlib import crc32

import torch

from lmserve.models.linear import Numerics
from lmserve.models.source import Source
from lmserve.weights.base import Checkpoint

log = logging.getLogger(__name__)

DEVIATION = 0.02  # what models are initialised with: logits stay finite


class DummySource(Source):
    """The same weights at every start, in whatever order they are asked for."""

    def __init__(self, checkpoint: Checkpoint, numerics: Numerics):
        super().__init__(checkpoint, numerics)
        log.warning("load_format is dummy: the weights are random, and so are the answers")

    def raw(self, name: str, *shape: int) -> torch.Tensor:
        numerics = self.numerics
        weight = torch.empty(shape, dtype=numerics.dtype, device=numerics.device)
        self._note_read(name, shape, shape)
        if name.endswith("norm.weight"):
            return weight.fill_(1)
        generator = torch.Generator(numerics.device).manual_seed(crc32(name.encode()))
        return weight.normal_(0, DEVIATION, generator=generator)
