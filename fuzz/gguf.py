"""The GGUF reader, and the checkpoint over it: a ModelError, or a model inside its file."""

from __future__ import annotations

from fuzz import gguf_seeds, scratch
from lmserve.errors import ModelError
from lmserve.weights.gguf import GGUFCheckpoint
from lmserve.weights.gguf_file import ArrayRef, GGUFFile
from lmserve.weights.gguf_tokenizer import describe, required
from lmserve.weights.quant.ggml import GGMLTensor

WORDS = (b"GGUF", b"gemma3", b"qwen3", b"rope_freqs.weight", b"output.weight", *(
    name.encode() for name in (*gguf_seeds.SHAPES, *gguf_seeds.NUMBERS)
))  # fmt: skip


def seeds() -> list[bytes]:
    return [
        gguf_seeds.model(),
        gguf_seeds.model("qwen3", tokenizer_ggml_pre="smollm"),
        gguf_seeds.model(rope_scaling_type="yarn"),
        gguf_seeds.file({"general.architecture": "llama", "x": [1, 2], "y": ["a"]}, {}),
        gguf_seeds.file({}, {"a": (1, 1, 1, 1)}),
    ]


def check(data: bytes) -> None:
    path = scratch.written("model.gguf", data)
    try:
        file = GGUFFile(path)
    except ModelError:
        return
    for info in file.tensors.values():
        assert 0 < info.num_bytes <= len(data), info
        assert file.data_start <= info.offset <= len(data) - info.num_bytes, info
    assert len(file.header_hash()) == 64
    for key in [key for key, value in file.metadata.items() if isinstance(value, ArrayRef)]:
        _arrays(file, key, len(data))
    try:
        describe(file, required(file, "tokens"), path)
    except ModelError:
        pass
    _checkpoint(file)


def _arrays(file: GGUFFile, key: str, num_bytes: int) -> None:
    try:
        items = file.array(key)
    except ModelError:
        return
    assert items is not None and len(items) <= num_bytes


def _checkpoint(file: GGUFFile) -> None:
    try:
        checkpoint = GGUFCheckpoint(file.path, scratch.folder())
        for name in checkpoint.names():
            tensor = checkpoint.get(name)
            rows = tensor.shape[0] if isinstance(tensor, GGMLTensor) else len(tensor)
            assert 0 < rows <= file.size
    except ModelError:
        pass
