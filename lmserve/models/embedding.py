"""Token embeddings: a dense table, or rows taken from quantised blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import torch

from lmserve.models.linear import Linear

if TYPE_CHECKING:
    from lmserve.models.source import Source
    from lmserve.weights.quant.base import QuantisedTensor


class DenseEmbedding:
    def __init__(self, table: torch.Tensor):
        self.table = table

    def __call__(self, token_ids: torch.Tensor) -> torch.Tensor:
        return self.table.index_select(0, token_ids)


class PackedEmbedding:
    """Only the rows looked up are dequantised."""

    def __init__(self, weight: QuantisedTensor, dtype: torch.dtype, device: torch.device):
        self.weight = weight
        self.dtype = dtype
        self.device = device

    def __call__(self, token_ids: torch.Tensor) -> torch.Tensor:
        return self.weight.rows(token_ids.cpu(), self.dtype).to(self.device)


class ScaledEmbedding:
    """The factor is rounded to the model's dtype first."""

    def __init__(self, embedding: Embedding, scale: float, dtype: torch.dtype):
        self.embedding = embedding
        self.scale = torch.tensor(scale, dtype=dtype).item()

    def __call__(self, token_ids: torch.Tensor) -> torch.Tensor:
        return self.embedding(token_ids).mul_(self.scale)


Embedding: TypeAlias = DenseEmbedding | PackedEmbedding | ScaledEmbedding


def embedding_and_head(
    source: Source, vocab_size: int, hidden_size: int, tied: bool
) -> tuple[Embedding, Linear]:
    """The first and the last weight of a model, one table where they are tied."""
    name, numerics = "model.embed_tokens.weight", source.numerics
    weight = source.weight(name, vocab_size, hidden_size)
    embedding: Embedding
    if numerics.packed and not numerics.on_device and not isinstance(weight, torch.Tensor):
        embedding = PackedEmbedding(weight, numerics.dtype, numerics.device)
    else:
        embedding = DenseEmbedding(source.dense(weight))
    if not tied:
        return embedding, source.linear(["lm_head"], [vocab_size], hidden_size, bias=False)
    table = embedding.table if isinstance(embedding, DenseEmbedding) else weight
    return embedding, source.linear_of([table], [None])
