"""Documents of random schemas, drawn at a high temperature, judged by `jsonschema`."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as HfTokenizer

from lmserve.errors import ModelError
from lmserve.weights import files
from lmserve.weights.checkpoint import open_checkpoint
from tests.e2e.conftest import DECODER, TinyModel
from tests.e2e.json_schemas import Schema, schemas
from tests.e2e.structures import Structured

AT_ONCE = 10
calmly = settings(
    deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), print_blob=False
)
many = st.lists(schemas(), min_size=AT_ONCE, max_size=AT_ONCE)


@pytest.fixture(scope="module")
def tiny(tiny_llama: TinyModel) -> Iterator[Structured]:
    engine = Structured(tiny_llama.path, max_batch_size=AT_ONCE)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def default_path() -> Path:
    try:
        return Path(files.resolve(None, files.cache_dir(os.environ.get("LMSERVE_CACHE_DIR"))).path)
    except ModelError as error:
        pytest.skip(f"the default model cannot be had: {error.message}")


@pytest.fixture(scope="module")
def wide(default_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Structured]:
    """A small random model with the vocabulary of a real one."""
    cache = files.cache_dir(os.environ.get("LMSERVE_CACHE_DIR"))
    assets = open_checkpoint(default_path, cache).tokenizer_assets()
    vocab_size = HfTokenizer.from_file(str(assets.tokenizer_file)).get_vocab_size()
    path = tmp_path_factory.mktemp("wide")
    eos_id = assets.eos_token_ids[0]
    config = transformers.LlamaConfig(
        **DECODER | {"vocab_size": vocab_size, "eos_token_id": eos_id}
    )
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(path)
    shutil.copy(assets.tokenizer_file, path / "tokenizer.json")
    engine = Structured(path, max_batch_size=AT_ONCE)
    assert engine.info.vocab_size == vocab_size
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def real(default_path: Path) -> Iterator[Structured]:
    engine = Structured(default_path, session_len=1024, threads=2, max_batch_size=AT_ONCE)
    yield engine
    engine.close()


def judge(engine: Structured, schemas: list[Schema], max_tokens: int) -> int:
    """Says how many documents were whole."""
    answers = [
        engine.ask("say it: ", engine.grammar("json_schema", schema), temperature=1.5,
                   max_tokens=max_tokens)
        for schema in schemas
    ]  # fmt: skip
    engine.run(max_s=250)
    num_whole = 0
    for schema, answer in zip(schemas, answers, strict=True):
        assert answer.finish in ("stop", "length"), (answer.error, schema)
        if answer.finish == "stop":
            document: Any = json.loads(engine.text(answer))
            checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
            jsonschema.Draft202012Validator(schema, format_checker=checker).validate(document)
            num_whole += 1
    return num_whole


@settings(calmly, max_examples=2)
@given(many)
def test_documents_obey_their_schemas(tiny: Structured, schemas: list[Schema]) -> None:
    assert judge(tiny, schemas, max_tokens=400) >= AT_ONCE - 3


@pytest.mark.slow
@pytest.mark.timeout(600)
@settings(calmly, max_examples=20)
@given(many)
def test_two_hundred_do(tiny: Structured, schemas: list[Schema]) -> None:
    assert judge(tiny, schemas, max_tokens=400) >= AT_ONCE - 3


@pytest.mark.slow
@pytest.mark.timeout(600)
@settings(calmly, max_examples=20)
@given(many)
def test_two_hundred_do_in_a_real_vocabulary(wide: Structured, schemas: list[Schema]) -> None:
    assert judge(wide, schemas, max_tokens=400) >= AT_ONCE - 3


@pytest.mark.slow
@pytest.mark.timeout(900)
@settings(calmly, max_examples=2)
@given(many)
def test_some_do_of_a_real_model(real: Structured, schemas: list[Schema]) -> None:
    assert judge(real, schemas, max_tokens=120) >= AT_ONCE // 2
