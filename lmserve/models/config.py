"""The fields we use of a model's configuration, checked. Foreign spelling ends here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lmserve.errors import ModelError

Config = Mapping[str, Any]  # as in Hugging Face's config.json
ALIASES = {"swish": "silu"}


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Rotary positions: the plain form, and how a longer context was reached."""

    theta: float
    kind: str = "default"  # default, linear, llama3, yarn
    factor: float = 1.0
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0  # llama3
    original_max_positions: int = 0  # llama3, yarn
    beta_fast: float = 32.0  # yarn
    beta_slow: float = 1.0  # yarn
    attention_factor: float | None = None  # yarn


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A decoder of the Llama family."""

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    norm_eps: float
    max_positions: int
    tied_embeddings: bool
    rope: RopeConfig
    windows: tuple[int | None, ...]  # of each layer; None sees everything
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    activation: str = "silu"  # of the gate: silu, gelu_pytorch_tanh
    attention_scale: float | None = None  # None: of the head size
    attention_softcap: float | None = None
    final_softcap: float | None = None  # of the logits
    embed_scale: float = 1.0
    post_norms: bool = False  # after attention and after the mlp too
    zero_centred_norms: bool = False  # a norm's factor is 1 + weight
    local_rope: RopeConfig | None = None  # of the layers with a window; None: as the others


def architecture(config: Config) -> str:
    names = config.get("architectures")
    if not isinstance(names, list | tuple) or not names:
        raise ModelError("the model's config.json names no architecture (field 'architectures')")
    return str(names[0])


def parse_config(
    config: Config, *, rope: RopeConfig | None = None, activation: str = "silu", **family: Any
) -> ModelConfig:
    """The configuration of a Llama-like model; `family` are the fields its family fixes. What the
    family takes where config.json is silent is already in `config`."""
    num_heads = _whole(config, "num_attention_heads")
    hidden_size = _whole(config, "hidden_size")
    num_layers = _whole(config, "num_hidden_layers")
    num_kv_heads = _whole(config, "num_key_value_heads", num_heads)
    if num_heads % num_kv_heads:
        raise ModelError(
            f"the model's config.json is inconsistent: {num_heads} attention heads do not "
            f"divide into {num_kv_heads} key-value heads"
        )
    given = config.get("hidden_activation") or config.get("hidden_act") or activation
    if ALIASES.get(given, given) != activation:
        raise ModelError(f"hidden_act {given!r} is not supported in this family; use {activation}")
    return ModelConfig(
        architecture=architecture(config),
        vocab_size=_whole(config, "vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=_whole(config, "intermediate_size"),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=_whole(config, "head_dim", hidden_size // num_heads),
        norm_eps=_number(config, "rms_norm_eps", 1e-6),
        max_positions=_whole(config, "max_position_embeddings", 2048),
        tied_embeddings=bool(config.get("tie_word_embeddings", False)),
        rope=parse_rope(config) if rope is None else rope,
        windows=_windows(config, num_layers),
        activation=activation,
        **family,
    )


def parse_rope(config: Config) -> RopeConfig:
    """Old spelling (`rope_theta`, `rope_scaling`) and new (`rope_parameters`)."""
    given = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    if any(isinstance(value, Mapping) for value in given.values()):
        raise ModelError("rope parameters by layer type are not supported in this family")
    if float(config.get("partial_rotary_factor") or given.get("partial_rotary_factor") or 1) != 1:
        raise ModelError("partial_rotary_factor is not supported in this family")
    kind = given.get("rope_type") or given.get("type") or "default"
    if kind not in ("default", "linear", "llama3", "yarn"):
        raise ModelError(
            f"rope scaling of type {kind!r} is not supported; "
            "use a model with default, linear, llama3 or yarn"
        )
    # some models carry theta at the top level only, new ones inside
    theta = given.get("rope_theta") or config.get("rope_theta") or 10000.0
    attention_factor = given.get("attention_factor")
    if kind == "yarn" and (given.get("mscale") or given.get("truncate") is False):
        raise ModelError("rope scaling 'yarn' with mscale or without truncation is not supported")
    return RopeConfig(
        theta=float(theta),
        kind=kind,
        factor=_number(given, "factor", 1.0 if kind == "default" else None),
        low_freq_factor=_number(given, "low_freq_factor", 1.0 if kind != "llama3" else None),
        high_freq_factor=_number(given, "high_freq_factor", 4.0 if kind != "llama3" else None),
        original_max_positions=_whole(
            given,
            "original_max_position_embeddings",
            _whole(config, "max_position_embeddings", 2048),
        ),
        beta_fast=_number(given, "beta_fast", 32.0),
        beta_slow=_number(given, "beta_slow", 1.0),
        attention_factor=None if attention_factor is None else float(attention_factor),
    )


def _windows(config: Config, num_layers: int) -> tuple[int | None, ...]:
    window = config.get("sliding_window")
    kinds = config.get("layer_types")
    if window is None or not config.get("use_sliding_window", True):
        return (None,) * num_layers
    if kinds:
        return tuple(int(window) if kind == "sliding_attention" else None for kind in kinds)
    # Qwen2 spells "only the layers above this one"; Mistral has none of it
    first = int(config.get("max_window_layers") or 0)
    return tuple(int(window) if layer >= first else None for layer in range(num_layers))


def _whole(config: Config, name: str, default: int | None = None) -> int:
    value = config.get(name)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ModelError(f"the model's config.json needs a whole number {name!r}, not {value!r}")
    return value


def _number(config: Config, name: str, default: float | None) -> float:
    value = config.get(name)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ModelError(f"the model's config.json needs a number {name!r}, not {value!r}")
    return float(value)
