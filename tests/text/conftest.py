"""Small tokenizers built from literals: one a decoder family."""

from __future__ import annotations

import functools

import pytest
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as HfTokenizer

from lmserve.text.tokenizer import Tokenizer

WORDS = "hello world the quick brown fox stop end é ü 你 好 😀 <|".split()


@functools.cache
def byte_level() -> Tokenizer:
    """Bytes, some words, two special tokens, and an added token outside the byte alphabet."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    split = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    pieces = [split.pre_tokenize_str(text)[0][0] for word in WORDS for text in (word, f" {word}")]
    vocab = {token: id for id, token in enumerate(dict.fromkeys([*alphabet, *pieces]))}
    inner = HfTokenizer(models.BPE(vocab=vocab, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([AddedToken("<|end|>", special=True), AddedToken("<s>", special=True)])
    inner.add_tokens([AddedToken("<a tool>", special=False)])
    return Tokenizer(inner, bos_token="<s>", eos_token_ids=[len(vocab)])


def _metaspace_vocab() -> dict[str, int]:
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁"]
    tokens += [chr(code) for code in range(0x21, 0x7F)]
    tokens += [text for word in WORDS[:8] for text in (word, f"▁{word}")]
    return {token: id for id, token in enumerate(dict.fromkeys(tokens))}


@functools.cache
def byte_fallback() -> Tokenizer:
    """As Llama 2's: metaspace by normaliser, bytes where a character has no token."""
    model = models.BPE(
        vocab=_metaspace_vocab(), merges=[], unk_token="<unk>", byte_fallback=True, fuse_unk=True
    )
    inner = HfTokenizer(model)
    inner.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    inner.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    inner.add_special_tokens([AddedToken("<s>", special=True), AddedToken("</s>", special=True)])
    return Tokenizer(inner, bos_token="<s>", eos_token_ids=[2], add_bos=True)


@functools.cache
def metaspace() -> Tokenizer:
    """Metaspace as pre-tokenizer and decoder, no bytes."""
    inner = HfTokenizer(models.BPE(vocab=_metaspace_vocab(), merges=[], unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.decoder = decoders.Metaspace()
    inner.add_special_tokens([AddedToken("<s>", special=True), AddedToken("</s>", special=True)])
    return Tokenizer(inner, bos_token="<s>", eos_token_ids=[2])


FAMILIES = {"byte_level": byte_level, "byte_fallback": byte_fallback, "metaspace": metaspace}


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Tokenizer:
    return FAMILIES[request.param]()


@pytest.fixture
def byte_level_tokenizer() -> Tokenizer:
    return byte_level()


@pytest.fixture
def byte_fallback_tokenizer() -> Tokenizer:
    return byte_fallback()
