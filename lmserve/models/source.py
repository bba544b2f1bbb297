"""Where a model takes its weights from: a checkpoint, read in the form the numerics ask for."""

from __future__ import annotations

import math
from typing import TypeAlias

import torch

from lmserve.errors import ModelError, SettingsError
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
from lmserve.models.linears.device import DeviceLinears
from lmserve.weights.base import Checkpoint
from lmserve.weights.quant.base import GROUP_SIZE, QuantisedTensor
from lmserve.weights.quant.float8 import to_float8
from lmserve.weights.stream import WeightStream

Weight: TypeAlias = torch.Tensor | QuantisedTensor
HEAD = "lm_head"  # stays as it is where weights are rounded as they are loaded


class Source:
    """Reads each tensor once; counts parameters and notes the forms the weights have.

    Layers may be read from several threads at once. With a stream, dense matrices are only given
    their place on the device at first: their values are there after `finish`. All else is read as
    it is asked for.
    """

    def __init__(
        self, checkpoint: Checkpoint, numerics: Numerics, stream: WeightStream | None = None
    ):
        self.numerics = numerics
        self._stream = stream
        self._device = DeviceLinears(numerics) if numerics.on_device else None
        if numerics.quantization == "fp8":
            self._check_rounds()
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
        self._check_there(name)
        weight = self._checkpoint.get(name)
        self._note_read(name, tuple(weight.shape), shape)
        return weight

    def finish(self) -> None:
        """Fills what was given its place. Raises ModelError where a file is damaged."""
        if self._stream is not None:
            self._stream.run()

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

    def weight(self, name: str, num_out: int, num_in: int) -> Weight:
        """A matrix: quantised as the checkpoint holds it, else in the model's dtype on its
        device, its values there after `finish`."""
        placed = self._placed([name], [num_out], num_in)
        if placed is not None:
            return placed
        weight = self.raw(name, num_out, num_in)
        return self.dense(weight) if isinstance(weight, torch.Tensor) else weight

    def dense(self, weight: Weight) -> torch.Tensor:
        numerics = self.numerics
        if not isinstance(weight, torch.Tensor):
            weight = weight.dequantise(numerics.dtype)
        return weight.to(numerics.device, numerics.dtype).contiguous()

    def linear(self, names: list[str], outs: list[int], num_in: int, bias: bool) -> Linear:
        """The projections `names` (without ".weight") of one input, merged."""
        biases = [
            self.tensor(f"{name}.bias", out) if bias else None
            for name, out in zip(names, outs, strict=True)
        ]
        matrices = [f"{name}.weight" for name in names]
        rounds = self.numerics.quantization == "fp8" and names != [HEAD]
        placed = None if rounds else self._placed(matrices, outs, num_in)
        if placed is not None:
            return self.dense_linear(placed, _cat(biases))
        weights = [self.raw(name, out, num_in) for name, out in zip(matrices, outs, strict=True)]
        return self.linear_of(
            [self._rounded(each) for each in weights] if rounds else weights, biases
        )

    def dense_linear(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> Linear:
        self.forms.add(str(weight.dtype).removeprefix("torch."))
        form = TiledLinear if self.numerics.deterministic else DenseLinear
        return form(weight, bias)

    def linear_of(self, weights: list[Weight], biases: list[torch.Tensor | None]) -> Linear:
        """Merged: quantised weights of one form among themselves, or all dense."""
        made = self._quantised(weights, biases)
        if made is not None:
            return made
        dense = [self.dense(weight) for weight in weights]
        return self.dense_linear(dense[0] if len(dense) == 1 else torch.cat(dense), _cat(biases))

    def _quantised(self, weights: list[Weight], biases: list[torch.Tensor | None]) -> Linear | None:
        """The product with weights some of which are quantised; None where all are to be dense."""
        forms = [self._form(weight) for weight in weights]
        if all(form is None for form in forms):
            return None
        quantised = [weight for weight in weights if not isinstance(weight, torch.Tensor)]
        made = None
        if len(set(forms)) == 1:
            if self._device is None:
                return self._packed(quantised, _cat(biases))
            made = self._device.linear(quantised, _cat(biases))
        if made is None:
            pairs = zip(weights, biases, strict=True)
            return SplitLinear([self.linear_of([weight], [bias]) for weight, bias in pairs])
        self.forms.update(form for form in forms if form is not None)
        return made

    def _form(self, weight: Weight) -> str | None:
        """Weights of one form can be multiplied as one; None: it is to be dense."""
        if isinstance(weight, torch.Tensor) or not self.numerics.packed:
            return None
        if self._device is not None:
            return self._device.form(weight)
        return "packed" if int8_supported() else None

    def _check_rounds(self) -> None:
        if self._device is None:
            raise SettingsError(
                "--quantization fp8 runs on cuda (or, to check it, with --kernels twins); "
                "use --quantization none"
            )
        if not self.numerics.packed:
            raise SettingsError(
                "--quantization fp8 does not go with --dtype float32; use --dtype auto"
            )

    def _rounded(self, weight: Weight) -> Weight:
        """To 8-bit floats, on the device, where it can be multiplied as such."""
        assert self._device is not None
        if not isinstance(weight, torch.Tensor):
            raise SettingsError(
                f"--quantization fp8: the model is quantised already ({weight.type.lower()}); "
                "use --quantization none"
            )
        if not self._device.multiplies_float8(weight.shape):
            return weight
        return to_float8(weight.to(self.numerics.device))

    def _placed(self, names: list[str], outs: list[int], num_in: int) -> torch.Tensor | None:
        """Room on the device for the matrices `names`, one below the other, to be filled by
        `finish`; None where they are not plain values in a file."""
        if self._stream is None:
            return None
        for name in names:
            self._check_there(name)
        stored = [each for name in names if (each := self._checkpoint.stored(name)) is not None]
        if len(stored) < len(names):
            return None
        for name, each, num_out in zip(names, stored, outs, strict=True):
            self._note_read(name, each.shape, (num_out, num_in))
        numerics = self.numerics
        merged = torch.empty(sum(outs), num_in, dtype=numerics.dtype, device=numerics.device)
        for each, part in zip(stored, merged.split(outs), strict=True):
            self._stream.add(each, part)
        return merged

    def _check_there(self, name: str) -> None:
        if name not in self._names:
            raise ModelError(f"the model lacks the tensor {name!r}; its download may be damaged")

    def _note_read(self, name: str, shape: tuple[int, ...], wanted: tuple[int, ...]) -> None:
        if shape != wanted:
            raise ModelError(
                f"tensor {name!r} has shape {shape}, but config.json asks for {wanted}"
            )
        self._sizes.append(math.prod(shape))
        self._unread.discard(name)

    def _packed(self, weights: list[QuantisedTensor], bias: torch.Tensor | None) -> Linear:
        kinds = ", ".join(dict.fromkeys(weight.type.lower() for weight in weights))
        many = Int8Linear(*to_int8(weights), bias)
        few = None if self.numerics.deterministic else to_int4(weights, bias)
        self.forms.add(f"{'int8' if few is None else 'int4, int8'} ({kinds})")
        return many if few is None else RowCountLinear(few, many)


def to_int8(weights: list[QuantisedTensor]) -> tuple[torch.Tensor, torch.Tensor]:
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


def to_int4(weights: list[QuantisedTensor], bias: torch.Tensor | None) -> Int4Linear | None:
    """None where the kernel cannot run them all as one."""
    converted = [each for weight in weights if (each := weight.to_int4()) is not None]
    if len(converted) < len(weights) or sum(len(each.codes) for each in converted) % INT4_ALIGNMENT:
        return None
    codes = torch.cat([each.codes for each in converted])
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.to(torch.int32), 1)
    scales = torch.cat([each.scales for each in converted])
    # the kernel's zero is the value of code 8
    zeros = torch.cat([each.minima for each in converted]) + 8 * scales
    pairs = torch.stack((scales, zeros), dim=-1).to(torch.bfloat16)
    return Int4Linear(packed, pairs.transpose(0, 1).contiguous(), GROUP_SIZE, bias)


def _cat(biases: list[torch.Tensor | None]) -> torch.Tensor | None:
    held = [bias for bias in biases if bias is not None]
    return torch.cat(held) if held else None
