"""Gemma 2 (softcaps, every other layer with a window) and the text part of Gemma 3 (norms on
queries and keys, five of six layers with a window and with rotary positions of their own)."""

from __future__ import annotations

from typing import Any

from lmserve.errors import ModelError
from lmserve.models.config import Config, ModelConfig, RopeConfig, parse_config, parse_rope

# what transformers takes where config.json is silent
GEMMA2: dict[str, Any] = {
    "vocab_size": 256000,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "sliding_window_pattern": 2,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
}
GEMMA3 = {
    **GEMMA2,
    "vocab_size": 262208,
    "max_position_embeddings": 131072,
    "sliding_window_pattern": 6,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
}
THETA, LOCAL_THETA = 1_000_000.0, 10_000.0  # Gemma 3


def gemma2_config(config: Config) -> ModelConfig:
    return _gemma({**GEMMA2, **config})


def gemma3_config(config: Config) -> ModelConfig:
    """Old spelling (`rope_scaling`, `rope_local_base_freq`) and new (`rope_parameters` by layer
    type)."""
    config = {**GEMMA3, **config}
    given = config.get("rope_parameters") or {}
    whole = {"rope_theta": config.get("rope_theta") or THETA, **(config.get("rope_scaling") or {})}
    local = {"rope_theta": config.get("rope_local_base_freq") or LOCAL_THETA}
    return _gemma(
        config,
        rope=_rope(config, {**whole, **(given.get("full_attention") or {})}),
        local_rope=_rope(config, {**local, **(given.get("sliding_attention") or {})}),
        qk_norm=True,
    )


def _gemma(config: dict[str, Any], **family: Any) -> ModelConfig:
    if config.get("use_bidirectional_attention"):
        raise ModelError(
            "use_bidirectional_attention is not supported: its attention is not causal"
        )
    if not config.get("layer_types"):
        every = int(config["sliding_window_pattern"])
        config["layer_types"] = [
            "sliding_attention" if (layer + 1) % every else "full_attention"
            for layer in range(config["num_hidden_layers"])
        ]
    attention_bias = bool(config.get("attention_bias", False))
    return parse_config(
        config,
        activation="gelu_pytorch_tanh",
        qkv_bias=attention_bias,
        out_bias=attention_bias,
        attention_scale=float(config["query_pre_attn_scalar"]) ** -0.5,
        attention_softcap=config["attn_logit_softcapping"],
        final_softcap=config["final_logit_softcapping"],
        embed_scale=float(config["hidden_size"]) ** 0.5,
        post_norms=True,
        zero_centred_norms=True,
        **family,
    )


def _rope(config: Config, given: dict[str, Any]) -> RopeConfig:
    positions = config["max_position_embeddings"]
    return parse_rope({"rope_parameters": given, "max_position_embeddings": positions})
