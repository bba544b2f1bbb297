"""Prompts as vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from lmserve.sampling import SamplingParams
from lmserve.service.prompt import ModelText
from lmserve.service.rating.prompts import Prompts
from lmserve.service.work import Run
from lmserve.types import GenerateRequest


@dataclass(frozen=True, slots=True)
class Embedding:
    """Of one prompt."""

    vector: bytes  # float32, little-endian
    num_tokens: int
    model: str


async def embed(
    prompts: Prompts, requests: Sequence[GenerateRequest], pooling: Literal["mean", "last"]
) -> list[Embedding]:
    """The hidden states of each, pooled."""
    sampling = SamplingParams(temperature=0.0, max_tokens=0, pooling=pooling)

    def make(_: ModelText, encoded: list[list[int]]) -> list[Run]:
        return [Run(index, ids, sampling) for index, ids in enumerate(encoded)]

    return [
        Embedding(generation.embedding or b"", generation.num_prompt_tokens, generation.model)
        for generation in await prompts.run(requests, make)
    ]
