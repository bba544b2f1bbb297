"""Tokenizers out of GGUF files: converted once, split the way the model was trained."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from lmserve.errors import ModelError
from lmserve.weights import gguf_tokenizer
from lmserve.weights.checkpoint import TokenizerAssets, open_checkpoint

from .conftest import TOKENS

WriteGGUF = Callable[..., Path]


def convert(path: Path) -> tuple[Tokenizer, TokenizerAssets]:
    assets = open_checkpoint(path, path.parent / "cache").tokenizer_assets()
    return Tokenizer.from_file(str(assets.tokenizer_file)), assets


def spelled(tokenizer: Tokenizer, text: str) -> list[str]:
    return tokenizer.encode(text).tokens


def test_converted_once(write_gguf: WriteGGUF, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_gguf()
    _, first = convert(path)
    assert first == TokenizerAssets(
        tokenizer_file=first.tokenizer_file,
        chat_template="{{ messages }}",
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        eos_token_ids=(2, 0),
    )

    def again(*_: object) -> None:
        pytest.fail("converted a second time")

    monkeypatch.setattr(gguf_tokenizer, "convert", again)
    assert convert(path)[1] == first


def test_half_a_cache_is_made_again(write_gguf: WriteGGUF) -> None:
    path = write_gguf()
    _, first = convert(path)
    for damage in (first.tokenizer_file, first.tokenizer_file.with_name("assets.json")):
        damage.unlink()
        assert convert(path)[1] == first
    first.tokenizer_file.with_name("assets.json").write_text("{")
    assert convert(path)[1] == first


def test_special_tokens_are_one_id_and_text_comes_back(write_gguf: WriteGGUF) -> None:
    tokenizer, _ = convert(write_gguf())
    ids = tokenizer.encode("<|im_start|>ab<|im_end|>").ids
    assert ids == [1, TOKENS.index("ab"), 2]
    text = "x ab 12!\nab"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


@pytest.mark.parametrize(
    ("pre", "pieces"),
    [
        ("smollm", ["ab", "Ġ", "1", "2", "3", "4"]),  # every digit alone, the space too
        ("qwen2", ["ab", "Ġ", "1", "2", "3", "4"]),
        ("llama-bpe", ["ab", "Ġ", "123", "4"]),  # up to three
        ("gpt-2", ["ab", "Ġ", "123", "4"]),
        ("tekken", ["ab", "Ġ", "1", "2", "3", "4"]),
    ],
)
def test_numbers_are_split_as_in_training(
    write_gguf: WriteGGUF, pre: str, pieces: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import gguf

    monkeypatch.setattr(
        gguf.GGUFWriter,
        "add_tokenizer_pre",
        lambda self, _: self.add_string("tokenizer.ggml.pre", pre),
    )
    tokenizer, assets = convert(write_gguf())
    assert spelled(tokenizer, "ab 1234") == pieces
    assert assets.add_bos is (pre in ("llama-bpe", "tekken"))


def test_an_unknown_pre_tokenizer_is_warned_of(
    write_gguf: WriteGGUF, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import gguf

    monkeypatch.setattr(
        gguf.GGUFWriter,
        "add_tokenizer_pre",
        lambda self, _: self.add_string("tokenizer.ggml.pre", "brand-new"),
    )
    with caplog.at_level(logging.WARNING):
        convert(write_gguf())
    assert "unknown pre-tokenizer 'brand-new'" in caplog.text


def test_a_file_without_its_tokenizer(write_gguf: WriteGGUF) -> None:
    with pytest.raises(ModelError, match=r"no tokenizer\.ggml\.tokens"):
        convert(write_gguf(leave_out="tokens"))


def test_an_end_token_outside_the_vocabulary(write_gguf: WriteGGUF) -> None:
    with pytest.raises(ModelError, match="eot_token_id is 4000, outside its vocabulary"):
        convert(write_gguf(extra={"tokenizer.ggml.eot_token_id": 4000}))


GEMMA_TOKENS = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>", "  "]


def gemma_file(path: Path) -> Path:
    """The tokenizer half of a Gemma GGUF: scores that say nothing, spaces spelled as such."""
    import gguf

    writer = gguf.GGUFWriter(path, "gemma3")
    bytes_ = [f"<0x{value:02X}>" for value in range(256)]
    tokens = [*GEMMA_TOKENS, *bytes_, "▁a", "ab", "▁", "a", "b", "\n"]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * 6 + [4] + [6] * 256 + [1] * 6)
    writer.add_token_scores([-1000.0] * len(tokens))
    writer.add_bos_token_id(2)
    writer.add_eos_token_id(1)
    writer.add_unk_token_id(3)
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(False)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_gemma_s_sentencepiece(tmp_path: Path) -> None:
    from lmserve.weights.gguf_file import GGUFFile

    file = GGUFFile(gemma_file(tmp_path / "gemma.gguf"))
    assets = gguf_tokenizer.gguf_assets(file, tmp_path / "cache")
    assert (assets.add_bos, assets.bos_token, assets.eos_token) == (True, "<bos>", "<eos>")
    assert assets.eos_token_ids == (1, 5)
    tokenizer = Tokenizer.from_file(str(assets.tokenizer_file))
    text = "<start_of_turn>ab ab\né  b"
    pieces = ["<start_of_turn>", "ab", "▁a", "b", "\n", "<0xC3>", "<0xA9>", "▁▁", "b"]
    assert spelled(tokenizer, text) == pieces
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def sentencepiece_file(path: Path, *, space_prefix: bool) -> Path:
    """The tokenizer half of a Llama 2 style GGUF: a vocabulary with scores, and bytes."""
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    bytes_ = [f"<0x{value:02X}>" for value in range(256)]
    tokens = ["<unk>", "<s>", "</s>", *bytes_, "▁", "a", "b", "ab", "▁ab"]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_types([2, 3, 3] + [6] * 256 + [1] * 5)
    writer.add_token_scores([0.0] * 259 + [-4.0, -5.0, -6.0, -2.0, -1.0])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_space_prefix(space_prefix)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("space_prefix", [True, False])
def test_sentencepiece(tmp_path: Path, space_prefix: bool) -> None:
    from lmserve.weights.gguf_file import GGUFFile

    path = sentencepiece_file(tmp_path / "spm.gguf", space_prefix=space_prefix)
    assets = gguf_tokenizer.gguf_assets(GGUFFile(path), tmp_path / "cache")
    assert assets.add_bos is True
    assert assets.eos_token_ids == (2,)
    tokenizer = Tokenizer.from_file(str(assets.tokenizer_file))
    first = "▁ab" if space_prefix else "ab"
    assert spelled(tokenizer, "ab abé") == [first, "▁ab", "<0xC3>", "<0xA9>"]
    assert tokenizer.decode(tokenizer.encode("ab abé").ids) == "ab abé"
