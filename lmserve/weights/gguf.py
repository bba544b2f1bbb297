"""A GGUF file as a checkpoint: Hugging Face's names and row order over ggml's blocks."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from lmserve.errors import ModelError
from lmserve.weights import names
from lmserve.weights.base import Checkpoint, TokenizerAssets
from lmserve.weights.gguf_file import GGUFFile, TensorInfo
from lmserve.weights.quant.ggml import FLOATS, GGMLTensor, check_supported


class GGUFCheckpoint(Checkpoint):
    def __init__(self, path: Path, cache: Path):
        self.path = path
        self.cache = cache
        self.file = GGUFFile(path)
        self.config = names.hf_config(self.file)
        self.arch: str = self.file.metadata["general.architecture"]
        self._infos = self._index()
        self._check()
        # Private: torch takes no read-only memory, and a stray write must not reach the file.
        self._data = torch.from_file(
            str(path), shared=False, size=self.file.size, dtype=torch.uint8
        )
        if "rope_freqs.weight" in self.file.tensors:
            factors = self._tensor(self.file.tensors["rope_freqs.weight"])
            if isinstance(factors, GGMLTensor):
                raise self.file.damaged("its table of rope frequencies is quantised")
            self.config["rope_scaling"] = llama3_scaling(factors.float(), self.config, path)

    def names(self) -> list[str]:
        return list(self._infos)

    def get(self, name: str) -> torch.Tensor | GGMLTensor:
        info = self._infos.get(name)
        if info is None:
            raise ModelError(f"{self.path} has no tensor {name}; download it again")
        tensor = self._tensor(info)
        if self.arch in names.GEMMAS and names.ZERO_CENTRED.fullmatch(name):
            return self._centred(tensor)
        heads = self._permuted_heads(name)
        if heads is None:
            return tensor
        order = half_split_order(info.shape[0], heads)
        if isinstance(tensor, GGMLTensor):
            return tensor.select_rows(order)
        return tensor.index_select(0, order)

    def tokenizer_assets(self) -> TokenizerAssets:
        from lmserve.weights.gguf_tokenizer import gguf_assets

        return gguf_assets(self.file, self.cache)

    def _index(self) -> dict[str, TensorInfo]:
        infos = {}
        for info in self.file.tensors.values():
            if names.IGNORED.fullmatch(info.name):
                continue
            name = names.hf_name(self.arch, info.name)
            if name is None:
                raise ModelError(
                    f"{self.path} has a tensor {info.name!r} that lmserve does not know for "
                    f"{self.arch}; give a directory of safetensors"
                )
            infos[name] = info
        return infos

    def _check(self) -> None:
        """Everything is there, in its shape and in a type that can be unpacked."""
        for name, shape in names.expected_shapes(self.arch, self.config).items():
            info = self._infos.get(name)
            if info is None:
                raise self.file.damaged(f"tensor {name} is missing")
            if info.shape != shape:
                raise self.file.damaged(
                    f"tensor {info.name} has the shape {list(info.shape)}, not {list(shape)}"
                )
        for type_name in {info.type for info in self._infos.values()}:
            try:
                check_supported(type_name)
            except ModelError as error:
                raise ModelError(f"{self.path}: {error.message}") from error

    def _tensor(self, info: TensorInfo) -> torch.Tensor | GGMLTensor:
        data = self._data[info.offset : info.offset + info.num_bytes]
        if info.type in FLOATS:
            return data.view(FLOATS[info.type]).view(info.shape)
        rows = math.prod(info.shape[:-1])
        return GGMLTensor(info.type, data.view(rows, -1), (rows, info.shape[-1]))

    def _centred(self, factor: torch.Tensor | GGMLTensor) -> torch.Tensor:
        """A norm's weight as Hugging Face has it, of the factor in the file."""
        if isinstance(factor, GGMLTensor):
            raise self.file.damaged("one of its norms is quantised")
        return factor.float() - 1

    def _permuted_heads(self, name: str) -> int | None:
        """How many heads the rows of this tensor make, where its file has them interleaved."""
        if self.arch not in names.PERMUTED:
            return None
        if ".self_attn.q_proj." in name:
            return int(self.config["num_attention_heads"])
        if ".self_attn.k_proj." in name:
            return int(self.config["num_key_value_heads"])
        return None


def half_split_order(num_rows: int, num_heads: int) -> torch.Tensor:
    """Undoes llama.cpp's reordering of Q and K: its rotary pairs are neighbours, ours (and
    Hugging Face's) lie half a head apart."""
    rows = torch.arange(num_rows).view(num_heads, -1, 2)
    return rows.transpose(1, 2).reshape(-1)


def llama3_scaling(factors: torch.Tensor, config: dict[str, Any], path: Path) -> dict[str, Any]:
    """The rope scaling behind a table of frequency divisors (Llama 3.1 and later).

    GGUF keeps only the table; the published models differ in `factor` alone, so that is read
    off the table and the rest of it has to agree.
    """
    factor, low, high, original = float(factors.max()), 1.0, 4.0, 8192
    scaling = {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }
    half = config["head_dim"] // 2
    exponents = torch.arange(half, dtype=torch.float32) / half
    wavelengths = 2 * math.pi * config["rope_theta"] ** exponents
    smooth = ((original / wavelengths - low) / (high - low)).clamp(0, 1)
    expected = 1 / ((1 - smooth) / factor + smooth)
    if factors.shape != expected.shape or not torch.allclose(factors, expected, rtol=1e-3):
        raise ModelError(
            f"{path}: its table of rope frequencies is not Llama 3's, which is not supported; "
            "give a directory of safetensors"
        )
    return scaling
