"""Which code runs an architecture: our own decoder, or transformers for all others."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from lmserve.errors import ModelError
from lmserve.models.base import Model
from lmserve.models.config import Config, ModelConfig, architecture
from lmserve.models.decoder import Decoder
from lmserve.models.gemma import gemma2_config, gemma3_config
from lmserve.models.linear import Numerics
from lmserve.models.llama import llama_config, mistral_config
from lmserve.models.qwen import qwen2_config, qwen3_config
from lmserve.models.source import Source
from lmserve.weights.base import Checkpoint
from lmserve.weights.text_part import TextPart

log = logging.getLogger(__name__)

# Values in a matrix below which one thread converts it. Thousands of short operations wait for
# each other's threads: of 135 M parameters on two busy cores, 25 seconds with two, 2 with one.
SMALL_MATRIX = 2**22

FAMILIES: dict[str, Callable[[Config], ModelConfig]] = {
    "Gemma2ForCausalLM": gemma2_config,
    "Gemma3ForCausalLM": gemma3_config,
    "Gemma3ForConditionalGeneration": gemma3_config,
    "LlamaForCausalLM": llama_config,
    "MistralForCausalLM": mistral_config,
    "Qwen2ForCausalLM": qwen2_config,
    "Qwen3ForCausalLM": qwen3_config,
}
SEEING = {"Gemma3ForConditionalGeneration"}  # only their text part is run


def build(checkpoint: Checkpoint, path: str, numerics: Numerics) -> Model:
    """The model of a checkpoint; `path` is where transformers finds it."""
    name = architecture(checkpoint.config)
    family = FAMILIES.get(name)
    if family is not None:
        checkpoint = TextPart(checkpoint) if name in SEEING else checkpoint
        config, source = family(checkpoint.config), Source(checkpoint, numerics)
        with _threads_for(config):
            model = Decoder(config, source)
        source.check_all_read(config.tied_embeddings)
        return model
    if path.endswith(".gguf"):
        known = ", ".join(sorted(FAMILIES))
        raise ModelError(f"{name} is not supported from a GGUF file; supported are {known}")
    from lmserve.models.hf import HfModel  # transformers: seconds to import

    log.info("%s has no decoder of ours: it runs through transformers, slower", name)
    return HfModel(path, name, numerics)


@contextmanager
def _threads_for(config: ModelConfig) -> Iterator[None]:
    """One thread while a small model's weights are converted."""
    before = torch.get_num_threads()
    if config.hidden_size * config.intermediate_size < SMALL_MATRIX:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
