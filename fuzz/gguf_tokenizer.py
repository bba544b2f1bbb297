"""The conversion of a GGUF's tokenizer: a ModelError, or a tokenizer that can be read."""

from __future__ import annotations

from fuzz import gguf_seeds, scratch
from lmserve.errors import ModelError
from lmserve.text.tokenizer import Tokenizer
from lmserve.weights.gguf_file import GGUFFile
from lmserve.weights.gguf_tokenizer import convert, describe, required

MAX_BYTES = 4096
WORDS = (b"gpt2", b"llama", b"qwen2", b"tokenizer.ggml.scores", b"tokenizer.ggml.pre", b"a b")


def seeds() -> list[bytes]:
    return [
        gguf_seeds.model(),
        gguf_seeds.model(tokenizer_ggml_pre="qwen2"),
        gguf_seeds.file({"general.architecture": "llama"} | _sentencepiece(), {}),
    ]


def _sentencepiece() -> dict[str, object]:
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", "▁a", "b"],
        "tokenizer.ggml.scores": [0, 0, 0, 1, 2],
        "tokenizer.ggml.token_type": [2, 3, 3, 1, 1],
        "tokenizer.ggml.add_space_prefix": False,
    }


def check(data: bytes) -> None:
    path = scratch.written("vocabulary.gguf", data[:MAX_BYTES])
    try:
        file = GGUFFile(path)
        tokens = required(file, "tokens")
        tokenizer = convert(file, tokens)
        assets = describe(file, tokens, path.with_suffix(".json"))
        assets.tokenizer_file.write_text(tokenizer.to_str())
        read = Tokenizer.from_file(assets.tokenizer_file, eos_token_ids=assets.eos_token_ids)
    except ModelError:
        return
    assert set(assets.eos_token_ids) <= set(range(len(tokens)))
    read.decode(read.encode("a b", add_special=False), skip_special=True)
