"""The twins against transformers' parts, and against the decoder's own steps."""

from __future__ import annotations

import pytest
import torch
from cases import DEVICE, cache_of, norm_of, places, qk_norm_of, randn, tables_of
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.activations import ACT2FN
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb

from lmserve.fused.plain import PlainOps
from lmserve.models.norm import RMSNorm
from lmserve.models.rope import rotate

PLAIN = PlainOps()
DTYPES = [torch.float32, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rounds_first", [True, False])
def test_norms_are_those_of_transformers_to_the_bit(dtype, rounds_first):
    x, residual = randn(50, 576, dtype=dtype), randn(50, 576, dtype=dtype, seed=1)
    norm = norm_of(576, dtype, rounds_first=rounds_first)
    theirs = (LlamaRMSNorm if rounds_first else Gemma3RMSNorm)(576, eps=norm.eps).to(DEVICE, dtype)
    weight = norm.weight if rounds_first else (norm.weight - 1).to(dtype)
    if not rounds_first:
        norm = type(norm)(weight.float() + 1, norm.eps, rounds_first)
    theirs.weight.data.copy_(weight)
    with torch.inference_mode():
        assert torch.equal(PLAIN.norm(x, norm), theirs(x))
        expected = residual + theirs(x)
        assert torch.equal(PLAIN.add_norm(x, residual, norm, norm), theirs(expected))
    assert torch.equal(residual, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ["silu", "gelu_pytorch_tanh"])
def test_gates_are_those_of_transformers(dtype, activation):
    gate, up = randn(20, 200, dtype=dtype), randn(20, 200, dtype=dtype, seed=1)
    expected = ACT2FN[activation](gate) * up
    got = PLAIN.gate(torch.cat((gate, up), dim=-1), activation)
    close = 1e-6 if dtype == torch.float32 else 2**-7
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=close)


@settings(max_examples=15)
@given(
    num_tokens=st.integers(1, 9),
    num_heads=st.integers(1, 6),
    num_kv_heads=st.integers(1, 3),
    half=st.integers(1, 20),
    normed=st.booleans(),
)
def test_rope_write_is_norm_rotate_and_write(num_tokens, num_heads, num_kv_heads, half, normed):
    head_dim, dtype = 2 * half, torch.float32
    qkv = randn(num_tokens, (num_heads + 2 * num_kv_heads) * head_dim)
    positions, slots = places(num_tokens, 50), places(num_tokens, 40, seed=7)
    tables, cache = tables_of(head_dim, dtype), cache_of(num_kv_heads, head_dim, dtype)
    qk_norm = qk_norm_of(head_dim, dtype) if normed else None
    got = PLAIN.rope_write(qkv, positions, tables, slots, cache, qk_norm)

    q, k, v = qkv.view(num_tokens, -1, head_dim).split((num_heads, num_kv_heads, num_kv_heads), 1)
    if qk_norm is not None:
        q, k = RMSNorm(qk_norm.q_weight, 1e-6)(q), RMSNorm(qk_norm.k_weight, 1e-6)(k)
    cos, sin = tables.cos[positions], tables.sin[positions]
    whole = (torch.cat((cos, cos), dim=-1).unsqueeze(1), sin.unsqueeze(1), -sin.unsqueeze(1))
    torch.testing.assert_close(got, rotate(q, whole), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(cache.keys[slots], rotate(k, whole), atol=1e-5, rtol=1e-5)
    assert torch.equal(cache.values[slots], v)


def test_rope_in_bfloat16_is_at_least_as_exact_as_transformers():
    """Which rounds three times."""
    qkv = randn(20, 4 * 64, dtype=torch.bfloat16)
    positions, slots, cache = places(20, 50), places(20, 40), cache_of(1, 64, torch.bfloat16)
    tables = tables_of(64, torch.bfloat16)
    got = PLAIN.rope_write(qkv, positions, tables, slots, cache)
    cos, sin = (torch.cat((t, t), dim=-1)[positions] for t in (tables.cos, tables.sin))
    q = qkv.view(20, 4, 64)[:, :2]
    theirs, exact = (
        apply_rotary_pos_emb(q.to(dtype), q.to(dtype), cos.to(dtype), sin.to(dtype))[0].double()
        for dtype in (torch.bfloat16, torch.float64)
    )
    assert (got - exact).norm() <= (theirs - exact).norm()
    torch.testing.assert_close(got.double(), theirs, atol=2e-2, rtol=2e-2)
