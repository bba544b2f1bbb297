"""Which code runs an architecture: our own decoder, or transformers for all others."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from lmserve.device.select import device_for
from lmserve.errors import ModelError, SettingsError
from lmserve.models.base import Model
from lmserve.models.config import Config, ModelConfig, architecture
from lmserve.models.decoder import Decoder
from lmserve.models.dummy import DummySource
from lmserve.models.fused import FusedDecoder
from lmserve.models.gemma import gemma2_config, gemma3_config
from lmserve.models.linear import Numerics
from lmserve.models.llama import llama_config, mistral_config
from lmserve.models.native import NativeDecoder
from lmserve.models.qwen import qwen2_config, qwen3_config
from lmserve.models.source import Source
from lmserve.weights.base import Checkpoint
from lmserve.weights.dummy import DummyCheckpoint
from lmserve.weights.stream import WeightStream
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
        config, source = family(checkpoint.config), _source(checkpoint, numerics)
        with _threads_for(config, numerics), _room_for_weights(numerics):
            model = _decoder(config, source)
            source.check_all_read(config.tied_embeddings)
            torch.set_num_threads(1)  # readers copy side by side
            source.finish()
        return model
    if isinstance(checkpoint, DummyCheckpoint):
        raise ModelError(
            f"load_format is dummy, which is not for {name}: it has no decoder of ours"
        )
    if path.endswith(".gguf"):
        known = ", ".join(sorted(FAMILIES))
        raise ModelError(f"{name} is not supported from a GGUF file; supported are {known}")
    _check_plain(checkpoint, name, numerics)
    from lmserve.models.hf import HfModel  # transformers: seconds to import

    log.info("%s has no decoder of ours: it runs through transformers, slower", name)
    return HfModel(path, name, numerics)


def _check_plain(checkpoint: Checkpoint, name: str, numerics: Numerics) -> None:
    if checkpoint.config.get("quantization_config"):
        raise ModelError(
            f"{name} has no decoder of ours, and transformers runs it unquantised only; "
            "give the unquantised model"
        )
    if numerics.quantization != "none":
        raise SettingsError(
            f"--quantization {numerics.quantization} is not for {name}, which runs through "
            "transformers; use --quantization none"
        )


def _source(checkpoint: Checkpoint, numerics: Numerics) -> Source:
    whole = checkpoint.whole if isinstance(checkpoint, TextPart) else checkpoint
    if isinstance(whole, DummyCheckpoint):
        return DummySource(checkpoint, numerics)
    return Source(checkpoint, numerics, WeightStream(device_for(numerics.device).staging))


def _decoder(config: ModelConfig, source: Source) -> Model:
    numerics = source.numerics
    if numerics.kernels is not None:
        return NativeDecoder(config, source, numerics.kernels)
    if numerics.fused is not None:
        return FusedDecoder(config, source, numerics.fused)
    return Decoder(config, source)


@contextmanager
def _room_for_weights(numerics: Numerics) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not device_for(numerics.device).is_out_of_memory(error):
            raise
        raise ModelError(
            f"the weights do not fit the memory of {numerics.device}; give a smaller model, or "
            "one that is quantised"
        ) from error


@contextmanager
def _threads_for(config: ModelConfig, numerics: Numerics) -> Iterator[None]:
    """One thread of torch's while a small model's weights are converted, or where layers are
    converted side by side by as many threads as there are."""
    before = torch.get_num_threads()
    small = config.hidden_size * config.intermediate_size < SMALL_MATRIX
    if small or numerics.kernels is not None:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
