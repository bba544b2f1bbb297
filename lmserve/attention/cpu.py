"""Attention on CPU: batched over paged KV, plain product and softmax.

The queries of a step are cut into tiles of one sequence each; tiles of equal size and like
context form a bucket, and a bucket is one gather of keys, one product, one softmax, one
gather of values, one product. The query heads of a KV head are rows of its tile. (Torch's
own `scaled_dot_product_attention` with `enable_gqa` is several times slower here.)

Deterministic: the bits of a token's result must not depend on the batch, the chunking or
where a prefix hit began. So all tiles have one size, start at multiples of it (a position
is always the same line of its tile), and the products run over fixed pieces of the context,
summed in order. Softmax works row by row; pieces beyond a query's context add exact zeros.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch

from lmserve.attention.base import (
    AttentionBatch,
    AttentionOptions,
    CacheShape,
    Metadata,
    block_table,
)
from lmserve.attention.elementwise import VECTOR, softcap_
from lmserve.attention.slots import SlotAttention, SlotMetadata

TILE_SIZES = (128, 32, 8, 1)  # queries in a tile; what is left of a chunk takes a smaller one
DETERMINISTIC_TILE = 8
CONTEXT_PIECE = 256  # keys in one product, when deterministic
MAX_BUCKET_ELEMENTS = 2**22  # of the keys gathered, and of the scores: 16 MiB in float32


@dataclass(frozen=True, slots=True)
class Tile:
    """`count` queries of one row, beginning with the row's token `token` at `position`."""

    size: int
    row: int
    token: int  # in the step
    position: int
    line: int  # of the tile where the first query lies
    count: int

    @property
    def context(self) -> int:
        return self.position + self.count


@dataclass(slots=True)
class Bucket:
    """Tiles attended together: B of them, Q lines each, over C keys from `first_key` on."""

    size: int
    queries: torch.Tensor  # (B * Q): the token of each line
    gather: torch.Tensor  # (B * kv heads * C / block size): cache rows
    mask: torch.Tensor  # (B, 1, Q, 1, C): 0 or -inf
    lines: torch.Tensor | None  # the lines that hold a query; None for all
    targets: torch.Tensor  # their tokens


@dataclass(slots=True)
class CpuMetadata(SlotMetadata):
    table: np.ndarray
    buckets: dict[int | None, list[Bucket]] = field(default_factory=dict)  # by window


class CpuAttention(SlotAttention):
    name: ClassVar[str] = "cpu"

    def __init__(
        self,
        shape: CacheShape,
        dtype: torch.dtype,
        device: torch.device,
        deterministic: bool = False,
    ):
        super().__init__(shape, dtype, device)
        self.deterministic = deterministic
        # contexts are rounded up to whole blocks, or to whole pieces
        whole = math.lcm(shape.block_size, VECTOR)
        self.piece = -(-CONTEXT_PIECE // whole) * whole if deterministic else shape.block_size

    def prepare(self, batch: AttentionBatch) -> CpuMetadata:
        table = block_table(batch)
        return CpuMetadata(batch, self.slots(batch, table), table)

    def attend(
        self, q: torch.Tensor, layer: int, options: AttentionOptions, metadata: Metadata
    ) -> torch.Tensor:
        assert isinstance(metadata, CpuMetadata)
        buckets = metadata.buckets.get(options.window)
        if buckets is None:
            buckets = metadata.buckets[options.window] = self._build(metadata, options.window)
        out = torch.empty_like(q)
        for bucket in buckets:
            result = self._attend_bucket(q, layer, options, bucket)
            if bucket.lines is not None:
                result = result.index_select(0, bucket.lines)
            out.index_copy_(0, bucket.targets, result)
        return out

    def _attend_bucket(
        self, q: torch.Tensor, layer: int, options: AttentionOptions, bucket: Bucket
    ) -> torch.Tensor:
        num_kv_heads, head_dim = self.shape.num_kv_heads, self.shape.head_dim
        group = self.shape.num_heads // num_kv_heads
        lines = bucket.size * group
        q = q.index_select(0, bucket.queries).mul_(options.scale)
        q = q.view(-1, bucket.size, num_kv_heads, group, head_dim).transpose(1, 2)
        q = q.reshape(-1, lines, head_dim)  # (B * kv heads, Q * group, head_dim)
        keys, values = (cache.view(-1, cache.shape[2] * head_dim) for cache in self.kv[layer])

        k = keys.index_select(0, bucket.gather).view(q.shape[0], -1, head_dim)
        scores = self._scores(q, k)
        if options.softcap is not None:
            softcap_(scores, options.softcap, self.deterministic)
        scores.view(-1, num_kv_heads, bucket.size, group, k.shape[1]).add_(bucket.mask)
        weights = scores.softmax(-1)
        v = values.index_select(0, bucket.gather).view(k.shape)
        out = self._weighted(weights, v)
        out = out.view(-1, num_kv_heads, bucket.size, group, head_dim).transpose(1, 2)
        return out.reshape(-1, self.shape.num_heads, head_dim)

    def _scores(self, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        if not self.deterministic:
            return torch.bmm(q, k.transpose(1, 2))
        pieces = k.split(self.piece, dim=1)
        return torch.cat([torch.bmm(q, piece.transpose(1, 2)) for piece in pieces], dim=-1)

    def _weighted(self, weights: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        if not self.deterministic:
            return torch.bmm(weights, v)
        pairs = zip(weights.split(self.piece, dim=-1), v.split(self.piece, dim=1), strict=True)
        out = torch.zeros(*weights.shape[:2], v.shape[-1], dtype=v.dtype, device=v.device)
        for weight, piece in pairs:
            out += torch.bmm(weight, piece)
        return out

    # --- prepare: index building, once a step and window ----------------------------------

    def _build(self, metadata: CpuMetadata, window: int | None) -> list[Bucket]:
        tiles = list(self._tiles(metadata.batch))
        tiles.sort(key=lambda tile: (-tile.size, -tile.context))
        return [self._bucket(group, metadata, window) for group in self._groups(tiles)]

    def _tiles(self, batch: AttentionBatch) -> Iterator[Tile]:
        token = 0
        for row, (start, length) in enumerate(zip(batch.starts, batch.lens, strict=True)):
            cut = _aligned(start, length) if self.deterministic else _unaligned(start, length)
            for size, position, count in cut:
                line = position % size if self.deterministic else 0
                yield Tile(size, row, token, position, line, count)
                token += count

    def _groups(self, tiles: list[Tile]) -> Iterator[list[Tile]]:
        """Tiles of one size, none with less than half the context of the longest."""
        group: list[Tile] = []
        for tile in tiles:
            if group and not self._fits(tile, group):
                yield group
                group = []
            group.append(tile)
        if group:
            yield group

    def _fits(self, tile: Tile, group: list[Tile]) -> bool:
        longest, shape = group[0], self.shape
        width = max(shape.num_kv_heads * shape.head_dim, shape.num_heads * tile.size)
        return (
            tile.size == longest.size
            and (2 * tile.context >= longest.context or longest.context <= CONTEXT_PIECE)
            and (len(group) + 1) * longest.context * width <= MAX_BUCKET_ELEMENTS
        )

    def _bucket(self, tiles: list[Tile], metadata: CpuMetadata, window: int | None) -> Bucket:
        size, last = tiles[0].size, tiles[0].context
        first = 0
        if window is not None:
            first = max(0, min(tile.position for tile in tiles) - window + 1)
            first = first // self.piece * self.piece
        last = first + -(-(last - first) // self.piece) * self.piece
        # lines without a query repeat the nearest one: their results are dropped
        line = np.arange(size) - np.asarray([tile.line for tile in tiles])[:, None]
        count = np.asarray([tile.count for tile in tiles])[:, None]
        near = np.clip(line, 0, count - 1)
        query = near + np.asarray([tile.token for tile in tiles])[:, None]
        position = near + np.asarray([tile.position for tile in tiles])[:, None]
        held = (near == line).reshape(-1)
        lines = None if held.all() else self._tensor(np.flatnonzero(held))
        return Bucket(
            size=size,
            queries=self._tensor(query.reshape(-1)),
            gather=self._tensor(self._gather(tiles, metadata.table, first, last)),
            mask=self._mask(position, first, last, window),
            lines=lines,
            targets=self._tensor(query.reshape(-1)[held]),
        )

    def _gather(self, tiles: list[Tile], table: np.ndarray, first: int, last: int) -> np.ndarray:
        block_size, num_kv_heads = self.shape.block_size, self.shape.num_kv_heads
        columns = np.arange(first // block_size, last // block_size)
        columns[columns >= table.shape[1]] = 0  # beyond every context: masked
        blocks = table[np.asarray([tile.row for tile in tiles])][:, None, columns]
        rows = blocks * num_kv_heads + np.arange(num_kv_heads)[:, None]
        return rows.reshape(-1)

    def _mask(
        self, position: np.ndarray, first: int, last: int, window: int | None
    ) -> torch.Tensor:
        seen = self._tensor(position)[:, None, :, None, None]
        key = torch.arange(first, last, device=self.device)
        hidden = key > seen
        if window is not None:
            hidden |= key <= seen - window
        mask = torch.zeros(hidden.shape, dtype=self.dtype, device=self.device)
        return mask.masked_fill_(hidden, -torch.inf)

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).to(self.device)


def _unaligned(start: int, length: int) -> Iterator[tuple[int, int, int]]:
    """(size, position, count) of the fewest tiles that waste little."""
    position, end = start, start + length
    largest, smallest = TILE_SIZES[0], TILE_SIZES[-1]
    while end - position >= largest:
        yield largest, position, largest
        position += largest
    left = end - position
    if left:
        yield min(size for size in TILE_SIZES if size >= max(left, smallest)), position, left


def _aligned(start: int, length: int) -> Iterator[tuple[int, int, int]]:
    size, position, end = DETERMINISTIC_TILE, start, start + length
    while position < end:
        count = min(end, (position // size + 1) * size) - position
        yield size, position, count
        position += count
