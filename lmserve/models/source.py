"""Where a model takes its weights from: a checkpoint, read in the form the numerics ask for."""

from __future__ import annotations

import math
from typing import TypeAlias

import torch

from lmserve.errors import ModelError
from lmserve.models.linear import (
    INT4_ALIGNMENT,
    SMALLEST,
    WEIGHT_LEVELS,
    DenseLinear,
    Int4Linear,
    Int8Linear,
    Linear,
    Numerics,
    RowCountLinear,
    SplitLinear,
    TiledLinear,
    int8_supported,
)
from lmserve.weights.base import Checkpoint
from lmserve.weights.quant.ggml import GGMLTensor

Weight: TypeAlias = torch.Tensor | GGMLTensor


class Source:
    """Reads each tensor once; counts parameters and notes the forms the weights have.

    Layers may be read from several threads at once.
    """

    def __init__(self, checkpoint: Checkpoint, numerics: Numerics):
        self.numerics = numerics
        self.forms: set[str] = set()
        self._sizes: list[int] = []  # of the tensors read
        self._checkpoint = checkpoint
        self._names = frozenset(checkpoint.names())
        self._unread = set(self._names)

    @property
    def label(self) -> str:
        """For people: "int8 (q4_1) + float32"."""
        return " + ".join(sorted(self.forms))

    @property
    def num_parameters(self) -> int:
        return sum(self._sizes)

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
        self._sizes.append(math.prod(shape))
        self._unread.discard(name)
        return weight

    def check_all_read(self, tied: bool) -> None:
        """A tensor that the model has no use for shows that config.json is another model's."""
        unread = {name for name in self._unread if not name.endswith(".rotary_emb.inv_freq")}
        if tied:
            unread.discard("lm_head.weight")
        if unread:
            raise ModelError(
                f"the model has a tensor {min(unread)!r} that its architecture, as config.json "
                "describes it, has no use for; check 'architectures' and the bias settings there"
            )

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
        return self.linear_of(weights, biases)

    def dense_linear(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> Linear:
        self.forms.add(str(weight.dtype).removeprefix("torch."))
        form = TiledLinear if self.numerics.deterministic else DenseLinear
        return form(weight, bias)

    def linear_of(self, weights: list[Weight], biases: list[torch.Tensor | None]) -> Linear:
        """Merged: quantised weights among themselves, or all dense."""
        quantised = [weight for weight in weights if not isinstance(weight, torch.Tensor)]
        if self.numerics.packed and int8_supported() and quantised:
            if len(quantised) == len(weights):
                return self._quantised(quantised, _cat(biases))
            pairs = zip(weights, biases, strict=True)
            return SplitLinear([self.linear_of([weight], [bias]) for weight, bias in pairs])
        return self.dense_linear(
            torch.cat([self.dense(weight) for weight in weights]), _cat(biases)
        )

    def _quantised(self, weights: list[GGMLTensor], bias: torch.Tensor | None) -> Linear:
        kinds = ", ".join(dict.fromkeys(weight.type.lower() for weight in weights))
        many = Int8Linear(*to_int8(weights), bias)
        few = None if self.numerics.deterministic else to_int4(weights, bias)
        self.forms.add(f"{'int8' if few is None else 'int4, int8'} ({kinds})")
        return many if few is None else RowCountLinear(few, many)


def to_int8(weights: list[GGMLTensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes (out, in) and the scale of each output; the float32 weight exists in pieces only."""
    codes = torch.empty(
        sum(weight.shape[0] for weight in weights), weights[0].shape[1], dtype=torch.int8
    )
    scales = torch.empty(len(codes))
    start = 0
    for piece in (piece for weight in weights for piece in weight.pieces()):
        rows = slice(start, start := start + len(piece))
        scale = piece.abs().amax(1).clamp_min_(SMALLEST)
        codes[rows] = piece.mul_((WEIGHT_LEVELS / scale)[:, None]).round_()
        scales[rows] = scale / WEIGHT_LEVELS
    return codes, scales


def to_int4(weights: list[GGMLTensor], bias: torch.Tensor | None) -> Int4Linear | None:
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
    return Int4Linear(packed, scales.to(torch.bfloat16).contiguous(), groups.pop(), bias)


def _cat(biases: list[torch.Tensor | None]) -> torch.Tensor | None:
    held = [bias for bias in biases if bias is not None]
    return torch.cat(held) if held else None
