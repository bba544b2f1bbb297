"""Stand-ins for libraries that need a GPU: what their documentation says they compute and refuse,
in plain torch. Their signatures are the real ones, and so a keyword that is not there fails."""

from __future__ import annotations

import sys
import types
from typing import Any

import pytest
import torch
from torch import Tensor

PAGE = 256  # version 2 takes no smaller pages


def attend(
    q: Tensor,  # (Q, heads, head_dim)
    k: Tensor,  # (K, kv heads, head_dim)
    v: Tensor,
    scale: float,
    causal: bool,
    window: tuple[int, int],
    softcap: float,
) -> Tensor:
    """Aligned at the bottom right: the last query sees the last key. A window's ends are seen;
    -1 is no end. Where nothing is seen, zeros."""
    group = q.shape[1] // k.shape[1]
    k, v = (each.float().repeat_interleave(group, dim=1) for each in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q.float(), k) * scale
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    left, right = window
    if causal:
        right = 0
    place = torch.arange(len(q))[:, None] + len(k) - len(q)
    key = torch.arange(len(k))
    seen = torch.ones(len(q), len(k), dtype=torch.bool)
    if right >= 0:
        seen &= key <= place + right
    if left >= 0:
        seen &= key >= place - left
    weights = scores.masked_fill(~seen, -torch.inf).softmax(-1).nan_to_num(0.0)
    return torch.einsum("hqk,khd->qhd", weights, v).to(q.dtype)


def paged(cache: Tensor, table: Tensor, length: int) -> Tensor:
    """The first tokens of a row; no entry of its table beyond them is looked at."""
    blocks = table[: -(-length // cache.shape[1])].long()
    return cache[blocks].flatten(0, 1)[:length]


def check(q: Tensor, k: Tensor, v: Tensor, *numbers: Tensor) -> None:
    assert q.dtype in (torch.float16, torch.bfloat16), "only fp16 and bf16"
    assert q.dtype == k.dtype == v.dtype, "query, key and value must have the same dtype"
    assert q.stride(-1) == k.stride(-1) == v.stride(-1) == 1, "contiguous last dimension"
    assert q.shape[-1] == k.shape[-1] <= 256 and q.shape[-1] % 8 == 0
    assert q.shape[-2] % k.shape[-2] == 0
    for each in numbers:
        assert each.dtype == torch.int32 and each.stride(-1) == 1


def check_table(table: Tensor, rows: int, cache: Tensor, page: int) -> None:
    assert cache.ndim == 4 and table.shape[0] == rows and table.ndim == 2
    assert table.dtype == torch.int32 and table.stride(-1) == 1
    assert cache.shape[1] % page == 0, f"block size must be divisible by {page}"


def ragged(q: Tensor, starts: Tensor, max_query: int, keys_of: Any, *how: Any) -> Tensor:
    """Rows one after another. No more than `max_query` tokens of a row are computed."""
    out = torch.full_like(q, torch.nan)
    assert int(starts[0]) == 0 and int(starts[-1]) == len(q)
    for row, (first, end) in enumerate(zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True)):
        part = attend(q[first:end], *keys_of(row), *how)
        out[first : min(end, first + max_query)] = part[:max_query]
    return out


# --- flash-attn 2.8.3 ----------------------------------------------------------------------------


def flash_attn_with_kvcache(
    q, k_cache, v_cache, k=None, v=None, rotary_cos=None, rotary_sin=None, cache_seqlens=None,
    cache_batch_idx=None, cache_leftpad=None, block_table=None, softmax_scale=None, causal=False,
    window_size=(-1, -1), softcap=0.0, rotary_interleaved=True, alibi_slopes=None, num_splits=0,
    return_softmax_lse=False,
):  # fmt: skip
    assert k is v is None and q.ndim == 4
    check(q, k_cache, v_cache, cache_seqlens)
    check_table(block_table, len(q), k_cache, PAGE)
    assert cache_seqlens.shape == (len(q),)
    rows = [
        attend(
            q[row], *(paged(cache, block_table[row], length) for cache in (k_cache, v_cache)),
            softmax_scale, causal, window_size, softcap,
        )
        for row, length in enumerate(cache_seqlens.tolist())
    ]  # fmt: skip
    return torch.stack(rows)


def flash_attn_varlen_func(
    q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0,
    softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0, alibi_slopes=None,
    deterministic=False, return_attn_probs=False, block_table=None,
):  # fmt: skip
    check(q, k, v, cu_seqlens_q, cu_seqlens_k)
    check_table(block_table, len(cu_seqlens_q) - 1, k, PAGE)
    lens = cu_seqlens_k.diff()
    assert int(lens.max()) <= max_seqlen_k

    def keys_of(row):
        return (paged(cache, block_table[row], int(lens[row])) for cache in (k, v))

    how = (softmax_scale, causal, window_size, softcap)
    return ragged(q, cu_seqlens_q, max_seqlen_q, keys_of, *how)


# --- its hopper directory, of the same release ---------------------------------------------------


def flash_3_with_kvcache(
    q, k_cache, v_cache, k=None, v=None, qv=None, rotary_cos=None, rotary_sin=None,
    cache_seqlens=None, cache_batch_idx=None, cache_leftpad=None, page_table=None,
    cu_seqlens_q=None, cu_seqlens_k_new=None, max_seqlen_q=None, rotary_seqlens=None,
    q_descale=None, k_descale=None, v_descale=None, softmax_scale=None, causal=False,
    window_size=(-1, -1), attention_chunk=0, softcap=0.0, rotary_interleaved=True,
    scheduler_metadata=None, num_splits=0, pack_gqa=None, sm_margin=0, return_softmax_lse=False,
):  # fmt: skip
    check(q, k_cache, v_cache, cache_seqlens)
    check_table(page_table, len(cache_seqlens), k_cache, 1)
    lens = cache_seqlens.tolist()
    how = (softmax_scale, causal, window_size, softcap)

    def keys_of(row):
        return (paged(cache, page_table[row], lens[row]) for cache in (k_cache, v_cache))

    if cu_seqlens_q is None:
        assert q.ndim == 4 and len(q) == len(lens)
        return torch.stack([attend(q[row], *keys_of(row), *how) for row in range(len(lens))])
    check(q, k_cache, v_cache, cu_seqlens_q)
    assert q.ndim == 3 and max_seqlen_q is not None
    return ragged(q, cu_seqlens_q, max_seqlen_q, keys_of, *how)


# --- its cute directory, of the same release -----------------------------------------------------


def flash_4_varlen_func(
    q, k, v, cu_seqlens_q=None, cu_seqlens_k=None, seqused_q=None, seqused_k=None, page_table=None,
    softmax_scale=None, causal=False, window_size=(None, None), learnable_sink=None, softcap=0.0,
    pack_gqa=None,
):  # fmt: skip
    check(q, k, v, cu_seqlens_q, cu_seqlens_k)
    assert page_table is None, "paged KV not supported on SM 9.0"
    assert q.shape[-1] in (64, 96, 128)
    edges = cu_seqlens_k.tolist()
    assert edges[-1] == len(k) == len(v)
    window = tuple(-1 if end is None else end for end in window_size)

    def keys_of(row):
        return k[edges[row] : edges[row + 1]], v[edges[row] : edges[row + 1]]

    how = (softmax_scale, causal, window, softcap)
    return ragged(q, cu_seqlens_q, max(cu_seqlens_q.diff().tolist()), keys_of, *how), None


# --- torch's varlen_attn -------------------------------------------------------------------------


def varlen_attn_2_11(
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, return_aux=None, scale=None,
    window_size=(-1, -1),
):  # fmt: skip
    check(query, key, value, cu_seq_q, cu_seq_k)
    edges = cu_seq_k.tolist()
    assert edges[-1] == len(key) == len(value) and max(cu_seq_k.diff().tolist()) <= max_k

    def keys_of(row):
        return (each[edges[row] : edges[row + 1]] for each in (key, value))

    how = (scale, window_size == (-1, 0), window_size, 0.0)
    return ragged(query, cu_seq_q, max_q, keys_of, *how)


def varlen_attn_2_13(
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, return_aux=None, scale=None,
    window_size=(-1, -1), enable_gqa=False, seqused_k=None, block_table=None, num_splits=None,
):  # fmt: skip
    assert enable_gqa or query.shape[1] == key.shape[-2], "Try setting enable_gqa=True for GQA"
    how = {"return_aux": return_aux, "scale": scale, "window_size": window_size}
    if block_table is None:
        assert seqused_k is None
        return varlen_attn_2_11(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, **how)
    check(query, key, value, cu_seq_q, seqused_k)
    check_table(block_table, len(seqused_k), key, PAGE)
    lens = seqused_k.tolist()
    assert max(lens) <= max_k

    def keys_of(row):
        return (paged(cache, block_table[row], lens[row]) for cache in (key, value))

    given = (scale, window_size == (-1, 0), window_size, 0.0)
    return ragged(query, cu_seq_q, max_q, keys_of, *given)


# --- as if they were installed -------------------------------------------------------------------


def install_flash_2(monkeypatch: pytest.MonkeyPatch) -> None:
    _install(
        monkeypatch,
        "flash_attn",
        flash_attn_with_kvcache=flash_attn_with_kvcache,
        flash_attn_varlen_func=flash_attn_varlen_func,
    )


def install_flash_3(monkeypatch: pytest.MonkeyPatch) -> None:
    _install(monkeypatch, "flash_attn_interface", flash_attn_with_kvcache=flash_3_with_kvcache)


def install_flash_4(monkeypatch: pytest.MonkeyPatch) -> None:
    install_flash_2(monkeypatch)
    _install(monkeypatch, "flash_attn.cute")
    _install(monkeypatch, "flash_attn.cute.interface", flash_attn_varlen_func=flash_4_varlen_func)


def install_varlen(monkeypatch: pytest.MonkeyPatch, function: Any) -> None:
    """In a module of its own: torch's brings in its compiler."""
    _install(monkeypatch, "torch.nn.attention.varlen", varlen_attn=function)


def _install(monkeypatch: pytest.MonkeyPatch, name: str, **functions: Any) -> None:
    module = types.ModuleType(name)
    vars(module).update(functions)
    monkeypatch.setitem(sys.modules, name, module)
