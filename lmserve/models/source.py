"""Where a model takes its weights from: a checkpoint, read in the form the numerics ask for."""

from __future__ import annotations

import math
from typing import Any, Protocol, TypeAlias

import torch

from lmserve.errors import ModelError
from lmserve.models.linear import (
    INT4_ALIGNMENT,
    INT4_MAX_ROWS,
    DenseLinear,
    Int4Linear,
    Linear,
    Numerics,
    SplitLinear,
    TiledLinear,
)
from lmserve.weights.quant.ggml import GGMLTensor, cat_rows

Weight: TypeAlias = torch.Tensor | GGMLTensor


class Checkpoint(Protocol):
    """What models need of `lmserve.weights.base.Checkpoint`."""

    config: dict[str, Any]

    def names(self) -> list[str]: ...

    def get(self, name: str) -> Weight: ...


class Source:
    """Reads each tensor once; counts parameters and notes the forms the weights have."""

    def __init__(self, checkpoint: Checkpoint, numerics: Numerics):
        self.numerics = numerics
        self.num_parameters = 0
        self.forms: dict[str, None] = {}  # an ordered set
        self._checkpoint = checkpoint
        self._names = frozenset(checkpoint.names())

    @property
    def label(self) -> str:
        """For people: "int4 (q4_1) + float32"."""
        return " + ".join(self.forms)

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def raw(self, name: str, *shape: int) -> Weight:
        """As the checkpoint holds it, its shape checked."""
        if name not in self._names:
            raise ModelError(f"the model lacks the tensor {name!r}; its download may be damaged")
        weight = self._checkpoint.get(name)
        if tuple(weight.shape) != shape:
            raise ModelError(
                f"tensor {name!r} has shape {tuple(weight.shape)}, but config.json asks for {shape}"
            )
        self.num_parameters += math.prod(shape)
        return weight

    def tensor(self, name: str, *shape: int) -> torch.Tensor:
        """In the model's dtype, on its device."""
        return self.dense(self.raw(name, *shape))

    def dense(self, weight: Weight) -> torch.Tensor:
        numerics = self.numerics
        if not isinstance(weight, torch.Tensor):
            weight = weight.dequantise(numerics.dtype)
        return weight.to(numerics.device, numerics.dtype).contiguous()

    def linear(self, names: list[str], outs: list[int], num_in: int, bias: bool) -> Linear:
        """The projections `names` (without ".weight") of one input, merged."""
        weights = [
            self.raw(f"{name}.weight", out, num_in) for name, out in zip(names, outs, strict=True)
        ]
        biases = [
            self.tensor(f"{name}.bias", out) if bias else None
            for name, out in zip(names, outs, strict=True)
        ]
        return self._merge(weights, biases)

    def dense_linear(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> Linear:
        self.forms.setdefault(str(weight.dtype).removeprefix("torch."))
        form = TiledLinear if self.numerics.deterministic else DenseLinear
        return form(weight, bias)

    def _merge(self, weights: list[Weight], biases: list[torch.Tensor | None]) -> Linear:
        quantised = [weight for weight in weights if not isinstance(weight, torch.Tensor)]
        if self.numerics.packed and quantised:
            if len(quantised) == len(weights) and (merged := self._int4(quantised, biases)):
                return merged
            if len(weights) > 1:
                pairs = zip(weights, biases, strict=True)
                return SplitLinear([self._merge([weight], [bias]) for weight, bias in pairs])
        return self.dense_linear(
            torch.cat([self.dense(weight) for weight in weights]), _cat(biases)
        )

    def _int4(self, weights: list[GGMLTensor], biases: list[torch.Tensor | None]) -> Linear | None:
        """None where the kernel cannot run them all as one."""
        converted = [each for weight in weights if (each := weight.to_int4()) is not None]
        if len(converted) < len(weights):
            return None
        codes = torch.cat([each.codes for each in converted])
        groups = {each.group_size for each in converted}
        if len(groups) > 1 or codes.shape[0] % INT4_ALIGNMENT:
            return None
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
        scales = torch.cat([each.scales_and_zeros for each in converted], dim=1)
        for weight in weights:
            self.forms.setdefault(f"int4 ({weight.type.lower()})")
        same = len({weight.type for weight in weights}) == 1
        return Int4Linear(
            [cat_rows(weights)] if same else weights,
            packed,
            scales.to(torch.bfloat16).contiguous(),
            groups.pop(),
            _cat(biases),
            None if self.numerics.deterministic else INT4_MAX_ROWS,
        )


def _cat(biases: list[torch.Tensor | None]) -> torch.Tensor | None:
    held = [bias for bias in biases if bias is not None]
    return torch.cat(held) if held else None
