"""Qwen2 and 2.5 (biases on queries, keys and values) and Qwen3 (norms on queries and keys)."""

from __future__ import annotations

from lmserve.models.config import Config, ModelConfig, parse_config


def qwen2_config(config: Config) -> ModelConfig:
    return parse_config(config, qkv_bias=True)


def qwen3_config(config: Config) -> ModelConfig:
    attention_bias = bool(config.get("attention_bias", False))
    return parse_config(config, qkv_bias=attention_bias, out_bias=attention_bias, qk_norm=True)
