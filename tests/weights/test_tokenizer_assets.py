"""What a directory says about its tokenizer, in each of the spellings found in the wild."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, processors
from tokenizers.models import WordLevel

from lmserve.errors import ModelError
from lmserve.weights.checkpoint import TokenizerAssets, open_checkpoint
from lmserve.weights.tokenizer import sampling_defaults

WriteDirectory = Callable[..., Path]


def add_tokenizer(path: Path, *, adds_bos: bool = False) -> None:
    tokenizer = Tokenizer(WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
    tokenizer.add_special_tokens(
        [AddedToken("<s>", special=True), AddedToken("</s>", special=True)]
    )
    if adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 3)]
        )
    tokenizer.save(str(path / "tokenizer.json"))


def assets(path: Path) -> TokenizerAssets:
    return open_checkpoint(path, path / "cache").tokenizer_assets()


def test_everything_given(write_directory: WriteDirectory) -> None:
    path = write_directory(
        tokenizer_config={
            "bos_token": {"content": "<s>", "special": True},
            "eos_token": "</s>",
            "add_bos_token": True,
            "chat_template": "T",
        },
        generation_config={
            "eos_token_id": [2, 7],
            "do_sample": True,
            "temperature": 0.7,
            "top_k": 20,
            "max_length": 99,
        },
    )
    add_tokenizer(path)
    assert assets(path) == TokenizerAssets(
        tokenizer_file=path / "tokenizer.json",
        chat_template="T",
        bos_token="<s>",
        eos_token="</s>",
        eos_token_ids=(2, 7, 4),
        add_bos=True,
        generation_defaults={"temperature": 0.7, "top_k": 20},
    )


def test_almost_nothing_given(write_directory: WriteDirectory) -> None:
    path = write_directory()
    add_tokenizer(path)
    assert assets(path) == TokenizerAssets(path / "tokenizer.json", eos_token_ids=(0,))


def test_a_tokenizer_that_adds_bos_itself(write_directory: WriteDirectory) -> None:
    path = write_directory(tokenizer_config={"bos_token": "<s>", "add_bos_token": True})
    add_tokenizer(path, adds_bos=True)
    assert assets(path).add_bos is False


def test_sampling_settings_of_another_place(tmp_path: Path) -> None:
    own = {"temperature": 0.7}
    assert sampling_defaults("auto", own) == own
    assert sampling_defaults("lmdeploy", own) == {}
    with pytest.raises(ModelError, match="no generation_config.json is there"):
        sampling_defaults(str(tmp_path), own)
    (tmp_path / "generation_config.json").write_text('{"top_p": 0.5, "eos_token_id": 3}')
    assert sampling_defaults(str(tmp_path), own) == {"top_p": 0.5}


def test_sampling_settings_that_are_not_to_be_used(write_directory: WriteDirectory) -> None:
    path = write_directory(generation_config={"do_sample": False, "temperature": 0.7})
    add_tokenizer(path)
    assert assets(path).generation_defaults == {}


@pytest.mark.parametrize(
    ("in_config", "in_json", "in_jinja", "chosen"),
    [
        (None, None, None, None),
        ("config", None, None, "config"),
        ("config", "json", None, "json"),
        ("config", "json", "jinja", "jinja"),
        (
            [{"name": "rag", "template": "R"}, {"name": "default", "template": "D"}],
            *[None] * 2,
            "D",
        ),
        ([{"name": "rag", "template": "R"}], None, None, "R"),
    ],
)
def test_which_chat_template(
    write_directory: WriteDirectory, in_config: Any, in_json: Any, in_jinja: Any, chosen: Any
) -> None:
    path = write_directory(tokenizer_config={"chat_template": in_config})
    add_tokenizer(path)
    if in_json:
        (path / "chat_template.json").write_text(json.dumps({"chat_template": in_json}))
    if in_jinja:
        (path / "chat_template.jinja").write_text(in_jinja)
    assert assets(path).chat_template == chosen


def test_an_older_format_is_converted_once(
    write_directory: WriteDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_directory(tokenizer_config={"tokenizer_class": "GPT2Tokenizer"})
    vocab = {chr(c): c - 33 for c in range(33, 127)} | {"ab": 94, "<|endoftext|>": 95}
    (path / "vocab.json").write_text(json.dumps(vocab))
    (path / "merges.txt").write_text("#version: 0.2\na b\n")
    first = assets(path)
    assert Tokenizer.from_file(str(first.tokenizer_file)).encode("abc").ids == [94, 66]
    import transformers

    monkeypatch.delattr(transformers, "AutoTokenizer")
    assert assets(path) == first
    monkeypatch.undo()
    (path / "added_tokens.json").write_text('{"<new>": 96}')
    added = assets(path).tokenizer_file
    (path / "special_tokens_map.json").write_text('{"eos_token": "<|endoftext|>"}')
    assert len({first.tokenizer_file, added, assets(path).tokenizer_file}) == 3


def test_tokenizers_that_cannot_be_used(write_directory: WriteDirectory) -> None:
    path = write_directory()
    with pytest.raises(ModelError, match=r"no tokenizer\.json.*add the model's tokenizer\.json"):
        assets(path)
    (path / "tokenizer.json").write_text('{"version": "1.0"}')
    with pytest.raises(ModelError, match=r"tokenizer\.json is damaged"):
        assets(path)
