"""Which code runs an architecture: our own decoder, or transformers for all others."""

from __future__ import annotations

import logging
from collections.abc import Callable

from lmserve.errors import ModelError
from lmserve.models.base import Model
from lmserve.models.config import Config, ModelConfig, architecture
from lmserve.models.decoder import Decoder
from lmserve.models.linear import Numerics
from lmserve.models.llama import llama_config
from lmserve.models.qwen import qwen2_config, qwen3_config
from lmserve.models.source import Checkpoint, Source

log = logging.getLogger(__name__)

FAMILIES: dict[str, Callable[[Config], ModelConfig]] = {
    "LlamaForCausalLM": llama_config,
    "MistralForCausalLM": llama_config,
    "Qwen2ForCausalLM": qwen2_config,
    "Qwen3ForCausalLM": qwen3_config,
}


def build(checkpoint: Checkpoint, path: str, numerics: Numerics) -> Model:
    """The model of a checkpoint; `path` is where transformers finds it."""
    name = architecture(checkpoint.config)
    family = FAMILIES.get(name)
    if family is not None:
        return Decoder(family(checkpoint.config), Source(checkpoint, numerics))
    if path.endswith(".gguf"):
        known = ", ".join(sorted(FAMILIES))
        raise ModelError(f"{name} is not supported from a GGUF file; supported are {known}")
    from lmserve.models.hf import HfModel  # transformers: seconds to import

    log.info("%s has no decoder of ours: it runs through transformers, slower", name)
    return HfModel(path, name, numerics)
