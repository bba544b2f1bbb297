from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer as HfTokenizer
from tokenizers import models

from lmserve.errors import ModelError, RequestError
from lmserve.text.tokenizer import Tokenizer


def test_decode_is_the_inverse_of_encode(family: Tokenizer) -> None:
    ids = family.encode("hello world", add_special=False)
    assert family.decode(ids, skip_special=False) == "hello world"


def test_bos_is_added_once_and_only_where_asked(byte_fallback_tokenizer: Tokenizer) -> None:
    bos = byte_fallback_tokenizer.bos_token_id
    assert byte_fallback_tokenizer.encode("hello", add_special=True)[0] == bos
    assert byte_fallback_tokenizer.encode("hello", add_special=True)[1] != bos
    assert byte_fallback_tokenizer.encode("hello", add_special=False)[0] != bos


def test_whether_a_text_gets_a_bos(
    byte_fallback_tokenizer: Tokenizer, byte_level_tokenizer: Tokenizer
) -> None:
    assert byte_fallback_tokenizer.adds_bos
    assert not byte_level_tokenizer.adds_bos
    knows_no_letter = HfTokenizer(models.BPE(vocab={"<s>": 0, "1": 1}, merges=[]))
    assert not Tokenizer(knows_no_letter, bos_token="<s>").adds_bos


def test_special_ids_and_vocab_size(byte_level_tokenizer: Tokenizer) -> None:
    special = byte_level_tokenizer.special_ids
    assert byte_level_tokenizer.bos_token_id in special
    assert len(special) == 2
    assert max(special) < byte_level_tokenizer.vocab_size


def test_truncation_in_the_file_is_not_applied(
    tmp_path: Path, byte_level_tokenizer: Tokenizer
) -> None:
    path = tmp_path / "tokenizer.json"
    byte_level_tokenizer._inner.save(str(path))
    inner = type(byte_level_tokenizer._inner).from_file(str(path))
    inner.enable_truncation(4)
    inner.enable_padding(length=8)
    inner.save(str(path))
    tokenizer = Tokenizer.from_file(path)
    assert len(tokenizer.encode("abcdefgh" * 4, add_special=True)) == 32
    assert len(tokenizer.encode("abc", add_special=True)) == 3


def test_half_a_surrogate_is_the_callers_mistake(family: Tokenizer) -> None:
    with pytest.raises(RequestError, match="surrogate"):
        family.encode("a\ud800b", add_special=False)


@pytest.mark.parametrize("content", [None, "", "{}", "not json", '{"model": 3}'])
def test_a_damaged_file_is_one_clear_error(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ModelError, match=r"tokenizer\.json cannot be read"):
        Tokenizer.from_file(path)
