"""GGUF's names for tensors and settings, and Hugging Face's for the same things."""

from __future__ import annotations

import re
from typing import Any

from lmserve.errors import ModelError
from lmserve.weights.gguf_file import ArrayRef, GGUFFile

ARCHITECTURES = {  # general.architecture: what config.json would say
    "llama": ("LlamaForCausalLM", "llama"),
    "qwen2": ("Qwen2ForCausalLM", "qwen2"),
    "qwen3": ("Qwen3ForCausalLM", "qwen3"),
    "gemma2": ("Gemma2ForCausalLM", "gemma2"),
    "gemma3": ("Gemma3ForCausalLM", "gemma3_text"),
}
#: architectures whose converter reorders Q and K rows from half-split to interleaved rope
PERMUTED = frozenset({"llama"})
GEMMAS = frozenset({"gemma2", "gemma3"})
#: the weight of a norm whose factor is 1 + weight; their converter wrote the factor
ZERO_CENTRED = re.compile(r".*norm\.weight")

TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
GEMMA_LAYER = LAYER | {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
LAYERS = {arch: GEMMA_LAYER if arch in GEMMAS else LAYER for arch in ARCHITECTURES}
#: read through the config, or derived by every implementation
IGNORED = re.compile(r"rope_freqs\.weight|blk\.\d+\.attn_rot_embd\.weight")
ATTENTION_BIAS = re.compile(r"blk\.\d+\.attn_(q|k|v|output)\.bias")
MLP_BIAS = re.compile(r"blk\.\d+\.ffn_(gate|up|down)\.bias")
LAYER_NAME = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")


def hf_name(arch: str, name: str) -> str | None:
    """Hugging Face's name of a GGUF tensor; None where we know none."""
    stem, _, kind = name.rpartition(".")
    if stem in TOP and kind in ("weight", "bias"):
        return f"{TOP[stem]}.{kind}"
    match = LAYER_NAME.fullmatch(name)
    if match is None or match[2] not in LAYERS[arch]:
        return None
    return f"model.layers.{match[1]}.{LAYERS[arch][match[2]]}.{match[3]}"


def hf_config(file: GGUFFile) -> dict[str, Any]:
    """The `config.json` this GGUF would have."""
    return _Reader(file).config()


class _Reader:
    """Reads one file's settings, each checked for its type."""

    def __init__(self, file: GGUFFile):
        self.file = file
        self.arch = str(file.metadata.get("general.architecture"))
        if self.arch not in ARCHITECTURES:
            raise ModelError(
                f"{file.path} has the architecture {self.arch!r}, which lmserve does not read "
                f"from GGUF; it reads {', '.join(ARCHITECTURES)}: give a directory of safetensors"
            )

    def number(self, key: str, default: float | None = None) -> Any:
        full = f"{self.arch}.{key}"
        value = self.file.metadata.get(full, default)
        if isinstance(value, ArrayRef):
            raise ModelError(
                f"{self.file.path}: {full} differs from layer to layer, which is not supported"
            )
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.file.damaged(f"{full} is missing or not a number")
        return value

    def count(self, key: str, default: int | None = None) -> int:
        value = self.number(key, default)
        if not isinstance(value, int) or value <= 0:
            raise self.file.damaged(f"{self.arch}.{key} is {value!r}, not a positive integer")
        return value

    def config(self) -> dict[str, Any]:
        architecture, model_type = ARCHITECTURES[self.arch]
        tensors = self.file.tensors
        heads, hidden = self.count("attention.head_count"), self.count("embedding_length")
        if "token_embd.weight" not in tensors:
            raise self.file.damaged("tensor token_embd.weight is missing")
        if self.count("block_count") > len(tensors):
            raise self.file.damaged(f"{self.arch}.block_count exceeds its number of tensors")
        if self.file.metadata.get(f"{self.arch}.expert_count"):
            raise ModelError(f"{self.file.path} is a mixture of experts, which is not supported")
        config = {
            "architectures": [architecture],
            "model_type": model_type,
            "hidden_size": hidden,
            "num_hidden_layers": self.count("block_count"),
            "num_attention_heads": heads,
            "num_key_value_heads": self.count("attention.head_count_kv", heads),
            "head_dim": self.count("attention.key_length", hidden // heads),
            "intermediate_size": self.count("feed_forward_length"),
            "hidden_act": "silu",
            "rms_norm_eps": float(self.number("attention.layer_norm_rms_epsilon")),
            "rope_theta": float(self.number("rope.freq_base", 10000.0)),
            "vocab_size": tensors["token_embd.weight"].shape[0],
            "max_position_embeddings": self.count("context_length"),
            "tie_word_embeddings": "output.weight" not in tensors,
            "attention_bias": self.arch == "qwen2" or any(map(ATTENTION_BIAS.fullmatch, tensors)),
            "mlp_bias": any(map(MLP_BIAS.fullmatch, tensors)),
            "bos_token_id": self.file.metadata.get("tokenizer.ggml.bos_token_id"),
            "eos_token_id": self.file.metadata.get("tokenizer.ggml.eos_token_id"),
        }
        window = self.file.metadata.get(f"{self.arch}.attention.sliding_window")
        if window:
            config["sliding_window"] = window
        self._check_heads(config)
        config["rope_scaling"] = self._rope_scaling()
        return config | (self._gemma(config) if self.arch in GEMMAS else {})

    def _gemma(self, config: dict[str, Any]) -> dict[str, Any]:
        """What the files do not say is as llama.cpp takes it: of the published models."""
        gemma2, layers = self.arch == "gemma2", config["num_hidden_layers"]
        # the largest of each scales by its width for each head, all others by the head's size
        largest = layers == (46 if gemma2 else 62)
        scalar = config["hidden_size"] // config["num_attention_heads"]
        every = self.count("attention.sliding_window_pattern", 2 if gemma2 else 6)
        kinds = [
            "sliding_attention" if (i + 1) % every else "full_attention" for i in range(layers)
        ]
        config = {
            "hidden_activation": "gelu_pytorch_tanh",
            "query_pre_attn_scalar": scalar if largest else config["head_dim"],
            "sliding_window": self.count("attention.sliding_window", 4096 if gemma2 else None),
            "layer_types": kinds,
            "attn_logit_softcapping": self._softcap("attn", 50.0 if gemma2 else None),
            "final_logit_softcapping": self._softcap("final", 30.0 if gemma2 else None),
        }
        if not gemma2:
            config["rope_local_base_freq"] = float(self.number("rope.freq_base_swa", 10000.0))
        return config

    def _softcap(self, which: str, default: float | None) -> float | None:
        key = f"{which}_logit_softcapping"
        if default is None and f"{self.arch}.{key}" not in self.file.metadata:
            return None
        return float(self.number(key, default))

    def _check_heads(self, config: dict[str, Any]) -> None:
        head_dim = config["head_dim"]
        for key in ("attention.value_length", "rope.dimension_count"):
            if self.count(key, head_dim) != head_dim:
                raise ModelError(
                    f"{self.file.path}: {self.arch}.{key} differs from the head size {head_dim}, "
                    "which is not supported"
                )
        if config["num_attention_heads"] % config["num_key_value_heads"] or head_dim % 2:
            raise self.file.damaged("its attention heads do not divide evenly")

    def _rope_scaling(self) -> dict[str, Any] | None:
        kind = self.file.metadata.get(f"{self.arch}.rope.scaling.type", "linear")
        if kind == "none":
            return None
        factor = self.number("rope.scaling.factor", self.number("rope.scale_linear", 1.0))
        if kind == "yarn":
            return {
                "rope_type": "yarn",
                "factor": float(factor),
                "original_max_position_embeddings": self.count(
                    "rope.scaling.original_context_length"
                ),
            }
        if kind != "linear":
            raise ModelError(f"{self.file.path}: rope scaling {kind!r} is not supported")
        if factor == 1.0:
            return None
        return {"rope_type": "linear", "factor": float(factor)}


def expected_shapes(arch: str, config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every tensor that must be there, under Hugging Face's names."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    q = config["num_attention_heads"] * config["head_dim"]
    kv = config["num_key_value_heads"] * config["head_dim"]
    layer: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (hidden,),
        "self_attn.q_proj.weight": (q, hidden),
        "self_attn.k_proj.weight": (kv, hidden),
        "self_attn.v_proj.weight": (kv, hidden),
        "self_attn.o_proj.weight": (hidden, q),
        "post_attention_layernorm.weight": (hidden,),
        "mlp.gate_proj.weight": (inner, hidden),
        "mlp.up_proj.weight": (inner, hidden),
        "mlp.down_proj.weight": (hidden, inner),
    }
    if config["attention_bias"]:
        layer |= {f"self_attn.{n}_proj.bias": (s,) for n, s in (("q", q), ("k", kv), ("v", kv))}
        if arch != "qwen2":
            layer["self_attn.o_proj.bias"] = (hidden,)
    if config["mlp_bias"]:
        sizes = (("gate", inner), ("up", inner), ("down", hidden))
        layer |= {f"mlp.{n}_proj.bias": (s,) for n, s in sizes}
    if arch in GEMMAS:
        norms = ("pre_feedforward", "post_feedforward")
        layer |= {f"{name}_layernorm.weight": (hidden,) for name in norms}
    if arch in ("qwen3", "gemma3"):
        layer |= {f"self_attn.{n}_norm.weight": (config["head_dim"],) for n in ("q", "k")}
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config["vocab_size"], hidden),
        "model.norm.weight": (hidden,),
    }
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (config["vocab_size"], hidden)
    for index in range(config["num_hidden_layers"]):
        shapes |= {f"model.layers.{index}.{name}": shape for name, shape in layer.items()}
    return shapes
