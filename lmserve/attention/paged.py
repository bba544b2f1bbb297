"""What the backends of a device share: tokens-first KV in blocks, metadata on the device.

A step's rows are its decodes, one token each, first, and then all others. Decodes have tensors
of fixed shapes and nothing of the host's, so that a graph can capture their attention; the
others are built by `prepare` alone, with one upload, and a backend may read what the host knows
of them.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from lmserve.attention.base import (
    AttentionBackend,
    AttentionBatch,
    AttentionOptions,
    Metadata,
    block_table,
    token_positions,
    token_rows,
)
from lmserve.device.select import device_for

MAX_DECODES = 2**14  # rows of a graph
FP8_MAX = 448.0  # of float8_e4m3fn: what is beyond would become NaN


@dataclass(frozen=True, slots=True)
class PrefillRows:
    """The rows after the decodes, R of them, their queries counted from the first of them on."""

    lens: Sequence[int]  # on the host, as are the contexts, the row's own tokens included
    contexts: Sequence[int]
    table: torch.Tensor  # (R, W) int32
    context_lens: torch.Tensor  # (R) int32
    query_starts: torch.Tensor  # (R + 1) int32
    key_starts: torch.Tensor  # (R + 1) int32: the contexts laid one after another
    key_slots: torch.Tensor | None  # int64: their places in the cache, for who gathers
    fresh: bool  # all start at 0: queries and keys are the same tokens

    max_query: int
    max_context: int

    def part(self, begin: int, end: int) -> PrefillRows:
        """These rows alone."""
        if (begin, end) == (0, len(self.lens)):
            return self
        lens, contexts = self.lens[begin:end], self.contexts[begin:end]
        first_key, key_slots = sum(self.contexts[:begin]), self.key_slots
        return PrefillRows(
            lens=lens,
            contexts=contexts,
            table=self.table[begin:end],
            context_lens=self.context_lens[begin:end],
            query_starts=self.query_starts[begin : end + 1] - self.query_starts[begin],
            key_starts=self.key_starts[begin : end + 1] - self.key_starts[begin],
            key_slots=None
            if key_slots is None
            else key_slots[first_key : first_key + sum(contexts)],
            fresh=self.fresh,
            max_query=max(lens),
            max_context=max(contexts),
        )


@dataclass(slots=True)
class PagedMetadata(Metadata):
    """Of B rows with T tokens. All tensors are on the device."""

    slots: torch.Tensor  # (T) int64: block * block_size + offset, where each token's KV goes
    table: torch.Tensor  # (B, W) int32 block tables
    context_lens: torch.Tensor  # (B) int32: tokens in the cache once the step's are written
    query_starts: torch.Tensor  # (B + 1) int32
    max_query: int  # on the host: the longest row of the step
    max_context: int  # on the host: an upper bound of context_lens
    num_decodes: int  # leading rows of one token each
    prefill: PrefillRows | None = None  # the other rows


class PagedAttention(AttentionBackend):
    tokens_first: ClassVar[bool] = True
    capturable: ClassVar[bool] = True
    gathers: ClassVar[bool] = False  # the contexts of prefill rows, whatever they are

    def bind(self, kv: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> None:
        super().bind(kv)
        self._slots = [(_by_slot(keys), _by_slot(values)) for keys, values in kv]
        self._counts = torch.arange(MAX_DECODES + 1, dtype=torch.int32, device=self.device)

    def prepare(self, batch: AttentionBatch) -> PagedMetadata:
        lens = np.asarray(batch.lens, dtype=np.int64)
        contexts = np.asarray(batch.starts, dtype=np.int64) + lens
        table = block_table(batch)
        long = np.flatnonzero(lens != 1)
        first = int(long[0]) if len(long) else len(lens)  # of those that are no decodes
        later = AttentionBatch([0] * len(lens[first:]), contexts[first:].tolist(), ())
        fresh = not any(batch.starts[first:])
        gathered = self.gathers and not fresh
        # the later rows' are arrays of their own, for kernels like their beginnings aligned
        made = device_for(self.device).upload_together(
            [
                self._slots_of(table, batch),
                *_int32(table, contexts, _starts(lens)),
                self._slots_of(table[first:], later) if gathered else np.empty(0, np.int64),
                *_int32(table[first:], contexts[first:]),
                *_int32(_starts(lens[first:]), _starts(contexts[first:])),
            ]
        )
        slots, device_table, context_lens, query_starts, *rest = made
        key_slots, later_table, later_contexts, later_starts, key_starts = rest
        prefill = PrefillRows(
            lens=batch.lens[first:],
            contexts=later.lens,
            table=later_table,
            context_lens=later_contexts,
            query_starts=later_starts,
            key_starts=key_starts,
            key_slots=key_slots if gathered else slots[first:] if fresh else None,
            fresh=fresh,
            max_query=int(lens[first:].max(initial=0)),
            max_context=int(contexts[first:].max(initial=0)),
        )
        return PagedMetadata(
            slots=slots,
            table=device_table,
            context_lens=context_lens,
            query_starts=query_starts,
            max_query=int(lens.max()),
            max_context=int(contexts.max()),
            num_decodes=first,
            prefill=prefill if len(long) else None,
        )

    def decode_metadata(
        self,
        slots: torch.Tensor,
        table: torch.Tensor,
        context_lens: torch.Tensor,
        max_context: int,
    ) -> PagedMetadata:
        """Of rows of one token each. The tensors are used as they are: a graph that captures
        them reads what they hold when it runs."""
        count = len(slots)
        assert count <= MAX_DECODES, "too many rows"
        starts = self._counts[: count + 1]
        return PagedMetadata(slots, table, context_lens, starts, 1, max_context, count)

    def forward(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        layer: int,
        options: AttentionOptions,
        metadata: Metadata,
    ) -> torch.Tensor:
        assert isinstance(metadata, PagedMetadata)
        self.write(k, v, layer, metadata)
        return self.attend(q, layer, options, metadata)

    def write(self, k: torch.Tensor, v: torch.Tensor, layer: int, metadata: PagedMetadata) -> None:
        """Puts keys and values (T, kv heads, head_dim) into the cache."""
        for cache, new in zip(self._slots[layer], (k, v), strict=True):
            new = to_cache(new, self.dtype).contiguous()
            cache.index_copy_(0, metadata.slots, _by_slot(new[:, None]))

    def attend(
        self, q: torch.Tensor, layer: int, options: AttentionOptions, metadata: PagedMetadata
    ) -> torch.Tensor:
        """Of q (T, heads, head_dim) over what the cache holds; the same shape."""
        count, prefill = metadata.num_decodes, metadata.prefill
        if prefill is None:
            return self.decode(q, layer, options, metadata)
        if not count:
            return self.prefill(q, layer, options, prefill)
        parts = (
            self.decode(q[:count], layer, options, metadata),
            self.prefill(q[count:], layer, options, prefill),
        )
        return torch.cat(parts)

    @abstractmethod
    def decode(
        self, q: torch.Tensor, layer: int, options: AttentionOptions, metadata: PagedMetadata
    ) -> torch.Tensor:
        """Of the first len(q) rows, one token each. No host sync, and nothing of the host's but
        `max_context`."""

    @abstractmethod
    def prefill(
        self, q: torch.Tensor, layer: int, options: AttentionOptions, rows: PrefillRows
    ) -> torch.Tensor:
        """Of rows of any lengths, over the cache."""

    def gather(
        self, layer: int, slots: torch.Tensor, dtype: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of these slots, (tokens, kv heads, head_dim)."""
        size = (len(slots), self.shape.num_kv_heads, self.shape.head_dim)
        k, v = (
            cache.index_select(0, slots).view(self.dtype).view(size).to(dtype)
            for cache in self._slots[layer]
        )
        return k, v

    def _slots_of(self, table: np.ndarray, batch: AttentionBatch) -> np.ndarray:
        """The slots of a batch's tokens."""
        size, position = self.shape.block_size, token_positions(batch)
        slots: np.ndarray = table[token_rows(batch), position // size] * size + position % size
        return slots


def to_cache(new: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    if dtype == torch.float8_e4m3fn and new.dtype != dtype:
        new = new.clamp(-FP8_MAX, FP8_MAX)
    return new.to(dtype)


def _starts(lens: np.ndarray) -> np.ndarray:
    return np.concatenate(([0], np.cumsum(lens)))


def _int32(*arrays: np.ndarray) -> list[np.ndarray]:
    return [array.astype(np.int32) for array in arrays]


def _by_slot(cache: torch.Tensor) -> torch.Tensor:
    """(blocks, block_size, heads, head_dim) as (slots, heads * head_dim). A dtype of one byte
    as bytes: torch's index functions do not all know float8."""
    if cache.dtype.itemsize == 1:
        cache = cache.view(torch.uint8)
    return cache.view(-1, cache.shape[2] * cache.shape[3])
