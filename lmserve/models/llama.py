"""Llama, and what is Llama in all but name (SmolLM2, Mistral)."""

from __future__ import annotations

from lmserve.models.config import Config, ModelConfig, parse_config

# what transformers takes where config.json is silent
MISTRAL = {
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "sliding_window": 4096,
}


def llama_config(config: Config) -> ModelConfig:
    attention_bias = bool(config.get("attention_bias", False))
    return parse_config(
        config,
        qkv_bias=attention_bias,
        out_bias=attention_bias,
        mlp_bias=bool(config.get("mlp_bias", False)),
    )


def mistral_config(config: Config) -> ModelConfig:
    return parse_config({**MISTRAL, **config})
