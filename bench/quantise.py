#!/usr/bin/env python3
"""Writes a model anew with its layers' weights quantised, to the nearest value each.

    .venv/bin/python bench/quantise.py awq out/awq --model DIRECTORY
    .venv/bin/python bench/quantise.py gptq out/gptq --group-size 64

The directory has the form that AutoAWQ, GPTQModel and others write, so that what reads theirs can
be checked. No text is looked at: what those programs make loses less.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from lmserve.weights import files
from lmserve.weights.base import Checkpoint
from lmserve.weights.checkpoint import open_checkpoint
from lmserve.weights.quant.base import QuantisedTensor
from lmserve.weights.quant.float8 import FLOAT8, LARGEST, round_rows

AWQ_OUTPUTS = (0, 2, 4, 6, 1, 3, 5, 7)  # which of 8 outputs lies in each part of a word
Parts = dict[str, torch.Tensor]  # by the last part of their names
FORMATS = [
    *("awq", "gptq", "gptq-sym", "gptq-v2", "gptq-act-order", "gptq-int8"),
    *("fp8-block", "fp8-tensor", "fp8-channel"),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("format", choices=FORMATS)
    parser.add_argument("out", type=Path, help="a directory that is made")
    parser.add_argument("--model", help="as for lmserve; default: the built-in model")
    parser.add_argument("--cache-dir", help="as for lmserve")
    parser.add_argument("--group-size", type=int, default=64)
    args = parser.parse_args()
    cache = files.cache_dir(args.cache_dir)
    model = open_checkpoint(files.resolve(args.model, cache).path, cache)
    write(model, args.out, args.format, args.group_size)


def write(checkpoint: Checkpoint, out: Path, form: str, group_size: int = 64) -> None:
    config, quantise = quantiser(form, group_size)
    tensors: Parts = {}
    for name in checkpoint.names():
        weight = dense(checkpoint, name)
        if "_proj" not in name or not name.endswith(".weight"):
            tensors[name] = weight.to(torch.bfloat16)
            continue
        module = name.removesuffix(".weight")
        tensors |= {f"{module}.{part}": each for part, each in quantise(weight.float()).items()}
    out.mkdir(parents=True)
    save_file(
        {name: each.contiguous() for name, each in tensors.items()}, out / "model.safetensors"
    )
    given = {key: value for key, value in checkpoint.config.items() if value is not None}
    (out / "config.json").write_text(json.dumps(given | {"quantization_config": config}, indent=1))
    assets = checkpoint.tokenizer_assets()
    (out / "tokenizer.json").write_bytes(assets.tokenizer_file.read_bytes())
    known = ("chat_template", "bos_token", "eos_token")
    said = {key: value for key, value in asdict(assets).items() if key in known and value}
    (out / "tokenizer_config.json").write_text(json.dumps(said))


def dense(checkpoint: Checkpoint, name: str) -> torch.Tensor:
    weight = checkpoint.get(name)
    return weight.dequantise() if isinstance(weight, QuantisedTensor) else weight


def quantiser(form: str, group_size: int) -> tuple[dict[str, Any], Callable[[torch.Tensor], Parts]]:
    """What config.json says, and what makes a weight's parts."""
    method, _, kind = form.partition("-")
    config: dict[str, Any] = {"quant_method": method}
    if method == "awq":
        config |= {"bits": 4, "group_size": group_size, "version": "gemm", "zero_point": True}
        return config, lambda weight: awq_parts(weight, group_size)
    if method == "gptq":
        bits, sym, v2 = 8 if kind == "int8" else 4, kind in ("sym", "int8"), kind == "v2"
        config |= {"bits": bits, "group_size": group_size, "sym": sym}
        config |= {"desc_act": kind == "act-order"}
        config |= {"checkpoint_format": "gptq_v2" if v2 else "gptq"}
        order = shuffled if kind == "act-order" else torch.arange
        return config, lambda weight: gptq_parts(
            weight, group_size, bits, sym, v2, order(weight.shape[1])
        )
    if kind == "block":
        config |= {"activation_scheme": "dynamic", "weight_block_size": [128, 128]}
        return config, fp8_blocks
    if kind == "tensor":
        return config | {"activation_scheme": "static"}, fp8_whole
    weights = {"type": "float", "num_bits": 8, "strategy": "channel", "symmetric": True}
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    config = {"quant_method": "compressed-tensors", "format": "float-quantized"}
    return config | {"config_groups": groups, "ignore": ["lm_head"]}, fp8_channels


def awq_parts(weight: torch.Tensor, group_size: int) -> Parts:
    codes, zeros, scales = rounded(weight, group_size, bits=4, sym=False)
    words = [packed(each.T[:, awq_order(each.shape[0])], 4, dim=1) for each in (codes, zeros)]
    return {"qweight": words[0], "qzeros": words[1], "scales": scales.T.half()}


def awq_order(num_out: int) -> torch.Tensor:
    return torch.arange(num_out).view(-1, 8)[:, list(AWQ_OUTPUTS)].flatten()


def gptq_parts(
    weight: torch.Tensor, group_size: int, bits: int, sym: bool, v2: bool, order: torch.Tensor
) -> Parts:
    """The groups are of inputs that follow each other in `order`."""
    codes, zeros, scales = rounded(weight[:, order], group_size, bits, sym)
    back = order.argsort()
    words = packed(zeros.T, bits, dim=1)
    ones = sum(1 << shift for shift in range(0, 32, bits))
    return {
        "qweight": packed(codes[:, back].T, bits, dim=0),
        "qzeros": words if v2 else words - ones,
        "scales": scales.T.half(),
        "g_idx": (back // group_size).int(),
    }


def shuffled(size: int) -> torch.Tensor:
    return torch.randperm(size, generator=torch.Generator().manual_seed(size))


def rounded(
    weight: torch.Tensor, group_size: int, bits: int, sym: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes (N, K), zero points and scales (N, groups)."""
    groups, most = weight.reshape(len(weight), -1, group_size), 2**bits - 1
    high, low = groups.amax(-1).clamp_min(0), groups.amin(-1).clamp_max(0)
    if sym:
        high = torch.maximum(high, -low)
        low = -high
    scales = ((high - low) / most).half().float().clamp_min(1e-6)
    zeros = torch.full_like(scales, (most + 1) // 2) if sym else (-low / scales).round()
    zeros = zeros.clamp(0, most)
    codes = (groups / scales[..., None] + zeros[..., None]).round().clamp(0, most)
    return codes.flatten(1).int(), zeros.int(), scales


def packed(values: torch.Tensor, bits: int, dim: int) -> torch.Tensor:
    """Neighbours along `dim` in one word, the first lowest."""
    if dim == 0:
        return packed(values.T, bits, dim=1).T
    parts = values.long().reshape(len(values), -1, 32 // bits)
    words = (parts << torch.arange(0, 32, bits)).sum(-1)
    return torch.where(words < 2**31, words, words - 2**32).int()


def fp8_blocks(weight: torch.Tensor, size: int = 128) -> Parts:
    down, across = (-(-each // size) for each in weight.shape)
    whole = torch.zeros(down * size, across * size)
    whole[: weight.shape[0], : weight.shape[1]] = weight
    blocks = whole.view(down, size, across, size)
    scales = blocks.abs().amax((1, 3)).clamp_min(1e-12) / LARGEST
    values = (blocks / scales[:, None, :, None]).view_as(whole)
    data = values[: weight.shape[0], : weight.shape[1]].to(FLOAT8)
    return {"weight": data, "weight_scale_inv": scales}


def fp8_whole(weight: torch.Tensor) -> Parts:
    scale = weight.abs().max() / LARGEST
    data = (weight / scale).to(FLOAT8)
    return {"weight": data, "weight_scale": scale, "input_scale": torch.tensor(0.05)}


def fp8_channels(weight: torch.Tensor) -> Parts:
    data, scales = round_rows(weight)
    return {"weight": data, "weight_scale": scales}


if __name__ == "__main__":
    main()
