"""How a directory of safetensors is quantised, as its `quantization_config` says."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch

from lmserve.errors import ModelError
from lmserve.weights.quant.base import QuantisedTensor
from lmserve.weights.quant.float8 import FLOAT8, float8_tensor
from lmserve.weights.quant.grouped import AWQ, GPTQ, Form, grouped_tensor

Config = Mapping[str, Any]
Get = Callable[[str], torch.Tensor]
REMEDY = "give the unquantised model, a GGUF, or one quantised with AWQ, GPTQ or FP8"


class Scheme(ABC):
    """Puts a weight together of its parts in the file. What a config leaves out of quantisation
    shows in the file too: its plain weight is there."""

    beside: ClassVar[frozenset[str]]  # last parts of names of what belongs to a weight

    def name_of(self, stored: str) -> str | None:
        """Of a tensor in the file its weight's name; None where it only belongs to a weight."""
        return None if stored.rpartition(".")[2] in self.beside else stored

    @abstractmethod
    def read(self, name: str, held: frozenset[str], get: Get) -> torch.Tensor | QuantisedTensor:
        """A tensor by its weight's name, of those held in the file. Raises ModelError where a
        part is missing or does not fit."""


class Grouped(Scheme):
    """AWQ and GPTQ."""

    beside = frozenset({"qzeros", "scales", "g_idx"})

    def __init__(self, form: Form):
        self.form = form

    def name_of(self, stored: str) -> str | None:
        module, dot, last = stored.rpartition(".")
        return f"{module}{dot}weight" if last == "qweight" else super().name_of(stored)

    def read(self, name: str, held: frozenset[str], get: Get) -> torch.Tensor | QuantisedTensor:
        module = name.removesuffix(".weight")
        if name in held or f"{module}.qweight" not in held:
            return get(name)
        words, zeros, scales = (get(f"{module}.{part}") for part in ("qweight", "qzeros", "scales"))
        groups = get(f"{module}.g_idx") if f"{module}.g_idx" in held else None
        return grouped_tensor(module, self.form, words, zeros, scales, groups)


class FP8(Scheme):
    """Scales of activations are not used: those are rounded by row, as they come."""

    beside = frozenset(
        "weight_scale_inv weight_scale input_scale activation_scale k_scale v_scale".split()
    )

    def __init__(self, block: list[int] | None):
        self.block = block  # of weights that share a scale; None: all of an output, or all

    def read(self, name: str, held: frozenset[str], get: Get) -> torch.Tensor | QuantisedTensor:
        tensor = get(name)
        if tensor.dtype != FLOAT8:
            return tensor
        scales = next(
            (f"{name}{end}" for end in ("_scale_inv", "_scale") if name + end in held), None
        )
        if scales is None:
            raise ModelError(f"{name} has no scales beside it; download the model again")
        return float8_tensor(name, tensor, get(scales), self.block)


def read_scheme(path: Path, config: Config) -> Scheme | None:
    """None where the model is not quantised. Raises ModelError for what cannot be read."""
    given = config.get("quantization_config")
    if not given:
        return None
    method = str(given.get("quant_method", "an unknown method"))
    read = READERS.get(method)
    try:
        if read is None:
            raise Unreadable("")
        return read(given)
    except Unreadable as error:
        how = f" ({error})" if str(error) else ""
        raise ModelError(
            f"{path} is quantised with {method}{how}, which lmserve does not read; {REMEDY}"
        ) from error


class Unreadable(Exception):
    """A form of a method that is not supported; the message names it, for people."""


def _awq(given: Config) -> Scheme:
    version = str(given.get("version") or given.get("format") or "gemm").lower()
    if version != "gemm" or given.get("backend") == "llm-awq":
        raise Unreadable(f"version {version if version != 'gemm' else 'llm-awq'}")
    if given.get("bits", 4) != 4:
        raise Unreadable(f"{given['bits']} bits")
    if not given.get("zero_point", True):
        raise Unreadable("without zero points")
    return Grouped(AWQ)


def _gptq(given: Config) -> Scheme:
    if given.get("bits") not in (4, 8):
        raise Unreadable(f"{given.get('bits')} bits")
    form = given.get("checkpoint_format") or given.get("format") or "gptq"
    if form not in ("gptq", "gptq_v2"):
        raise Unreadable(f"checkpoint_format {form}")
    others = [each for each in given.get("dynamic") or () if not str(each).startswith("-:")]
    if others:  # those with a minus are modules left as they are
        raise Unreadable(f"dynamic rule {others[0]!r}")
    return Grouped(replace(GPTQ, bits=given["bits"], less_one=form == "gptq"))


def _fp8(given: Config) -> Scheme:
    if given.get("fmt", "e4m3") != "e4m3" or given.get("expert_dtype", "fp8") != "fp8":
        raise Unreadable("not e4m3")
    return FP8(given.get("weight_block_size"))


def _compressed(given: Config) -> Scheme:
    if given.get("format") != "float-quantized":
        raise Unreadable(f"format {given.get('format')}")
    weights = [group.get("weights") or {} for group in given.get("config_groups", {}).values()]
    for each in weights:
        if (each.get("type"), each.get("num_bits")) != ("float", 8):
            raise Unreadable(f"{each.get('num_bits')}-bit weights of type {each.get('type')}")
        if each.get("strategy") not in ("tensor", "channel", "block"):
            raise Unreadable(f"strategy {each.get('strategy')}")
    blocks = [each.get("block_structure") for each in weights]
    if len(weights) != 1 and any(blocks):
        raise Unreadable("several groups, some in blocks")
    return FP8(blocks[0] if blocks else None)


READERS: dict[str, Callable[[Config], Scheme]] = {
    "awq": _awq,
    "gptq": _gptq,
    "fp8": _fp8,
    "compressed-tensors": _compressed,
}
