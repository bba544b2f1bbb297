"""Qwen2 and 2.5 (biases on queries, keys and values) and Qwen3 (norms on queries and keys)."""

from __future__ import annotations

from lmserve.models.config import Config, ModelConfig, parse_config

# what transformers takes where config.json is silent
QWEN2 = {
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
}
QWEN3 = {**QWEN2, "head_dim": 128}


def qwen2_config(config: Config) -> ModelConfig:
    return parse_config({**QWEN2, **config}, qkv_bias=True)


def qwen3_config(config: Config) -> ModelConfig:
    attention_bias = bool(config.get("attention_bias", False))
    return parse_config(
        {**QWEN3, **config}, qkv_bias=attention_bias, out_bias=attention_bias, qk_norm=True
    )
