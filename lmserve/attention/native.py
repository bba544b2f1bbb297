"""Attention of the native kernels. Its bits depend on nothing but the row, deterministic or not."""

from __future__ import annotations

from array import array
from ctypes import byref
from dataclasses import dataclass
from typing import ClassVar

import torch

from lmserve.attention.base import (
    AttentionBackend,
    AttentionBatch,
    AttentionOptions,
    CacheShape,
    Metadata,
)
from lmserve.native.library import FORMS, Batch, CacheForm, Kernels, Options, address


@dataclass(slots=True)
class NativeMetadata(Metadata):
    struct: Batch
    arrays: tuple[array[int], ...]  # what the struct points to


class NativeAttention(AttentionBackend):
    name: ClassVar[str] = "native"

    def __init__(self, shape: CacheShape, dtype: torch.dtype, kernels: Kernels):
        super().__init__(shape, dtype, torch.device("cpu"))
        self.kernels = kernels
        self.form = CacheForm(
            num_heads=shape.num_heads,
            num_kv_heads=shape.num_kv_heads,
            head_dim=shape.head_dim,
            block_size=shape.block_size,
            kv_form=FORMS[dtype],
        )

    def prepare(self, batch: AttentionBatch) -> NativeMetadata:
        block_size = self.shape.block_size
        for start, length, blocks in zip(batch.starts, batch.lens, batch.blocks, strict=True):
            if start + length > len(blocks) * block_size:  # the kernels would read beyond
                raise IndexError("a row is longer than its blocks")
        starts, lens = array("i", batch.starts), array("i", batch.lens)
        tables, width = _tables(batch)
        struct = Batch(
            num_rows=len(starts),
            num_tokens=sum(batch.lens),
            table_width=width,
            starts=starts.buffer_info()[0],
            lens=lens.buffer_info()[0],
            tables=tables.buffer_info()[0],
        )
        return NativeMetadata(struct, (starts, lens, tables))

    def forward(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        layer: int,
        options: AttentionOptions,
        metadata: Metadata,
    ) -> torch.Tensor:
        assert isinstance(metadata, NativeMetadata)
        library, pool = self.kernels.library, self.kernels.pool
        form, batch = byref(self.form), byref(metadata.struct)
        given = [each.float().contiguous() for each in (q, k, v)]
        queries, *written = map(address, given)
        keys, values = (address(each) for each in self.kv[layer])
        library.lms_write_kv(pool, form, batch, *written, keys, values)
        out = torch.empty_like(given[0])
        layer_options = byref(native_options(options))
        library.lms_attend(pool, form, batch, layer_options, queries, keys, values, address(out))
        return out.to(q.dtype)


def native_options(options: AttentionOptions) -> Options:
    return Options(scale=options.scale, softcap=options.softcap or 0.0, window=options.window or 0)


def _tables(batch: AttentionBatch) -> tuple[array[int], int]:
    """Block tables, one after another in lines of one width. Plain loops: what numpy needs to
    begin with takes as long as a decode step may."""
    if len(batch.blocks) == 1:
        tables = array("i", batch.blocks[0])
        return tables, len(tables)
    width = max(map(len, batch.blocks))
    tables = array("i")
    for blocks in batch.blocks:
        tables.extend(array("i", blocks))
        tables.frombytes(bytes((width - len(blocks)) * tables.itemsize))
    return tables, width
