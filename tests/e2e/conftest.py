"""Whole models on disk: tiny random ones from literals, with a tokenizer and a template."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from lmserve.bridge.assets import CHAT_TEMPLATE, EOS_ID, VOCAB_SIZE, write_assets
from lmserve.errors import ModelError
from lmserve.weights import files

torch.set_num_threads(1)  # tiny models: a second thread only waits

SMALL: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "bos_token_id": None,
    "pad_token_id": None,
    "eos_token_id": EOS_ID,
}
DECODER = {**SMALL, "intermediate_size": 48, "num_key_value_heads": 2}
FAMILIES: dict[str, Callable[[], transformers.PreTrainedConfig]] = {
    "llama": lambda: transformers.LlamaConfig(**DECODER),
    "mistral": lambda: transformers.MistralConfig(**DECODER, sliding_window=9),
    "qwen2": lambda: transformers.Qwen2Config(**DECODER, use_sliding_window=False),
    "qwen3": lambda: transformers.Qwen3Config(**DECODER, head_dim=16, use_sliding_window=False),
    "neox": lambda: transformers.GPTNeoXConfig(**SMALL, intermediate_size=48),  # by transformers
}


class TinyModel:
    """A model directory, and what transformers says it answers."""

    def __init__(self, path: Path, module: Any):
        self.path = path
        self.module = module
        self._golden: dict[tuple[int, ...], list[int]] = {}

    def golden(self, prompt: list[int], num_tokens: int) -> list[int]:
        """transformers' own greedy tokens, never ended early."""
        key = (num_tokens, *prompt)
        if key not in self._golden:
            out = self.module.generate(
                torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
                max_new_tokens=num_tokens,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
            )
            self._golden[key] = out[0, len(prompt) :].tolist()
        return self._golden[key]


def make_model(path: Path, family: str, seed: int = 0, **config: Any) -> TinyModel:
    """`config`: what is other than with the others of the family."""
    torch.manual_seed(seed)
    made = FAMILIES[family]()
    made.update(config)
    module = transformers.AutoModelForCausalLM.from_config(made, attn_implementation="eager")
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            mean = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            parameter.normal_(mean, 0.25)  # large enough that the next token is a clear choice
    module.eval().save_pretrained(path)
    write_assets(path)
    (path / "tokenizer_config.json").write_text(
        json.dumps({"chat_template": CHAT_TEMPLATE, "eos_token": "<|im_end|>"})
    )
    return TinyModel(path, module)


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], TinyModel]:
    made: dict[str, TinyModel] = {}

    def get(family: str) -> TinyModel:
        if family not in made:
            made[family] = make_model(tmp_path_factory.mktemp(family), family)
        return made[family]

    return get


@pytest.fixture(scope="session")
def tiny_llama(tiny_models: Callable[[str], TinyModel]) -> TinyModel:
    return tiny_models("llama")


@dataclass(frozen=True)
class ServerProcess:
    url: str
    pid: int


@contextmanager
def serving(*args: str, env: dict[str, str] | None = None) -> Iterator[ServerProcess]:
    """`lmserve serve api_server` in a process of its own, ready to answer; stopped at the end."""
    command = [sys.executable, "-m", "lmserve", "serve", "api_server", "--server-port", "0", *args]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        text=True,
        env={"LMSERVE_STANDBY": "false"} | os.environ | (env or {}),  # it would cost each 3 s
    )
    assert process.stdout is not None
    try:
        lines = iter(process.stdout.readline, "")
        url = next(found[0] for line in lines if (found := re.findall(r"https?://\S+", line)))
        next(line for line in lines if line.startswith("ready"))
        yield ServerProcess(url, process.pid)
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)


@pytest.fixture(scope="session")
def default_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """The default model, served as the README says; short contexts bound what it may say."""
    try:
        files.resolve(None, files.cache_dir(os.environ.get("LMSERVE_CACHE_DIR")))
    except ModelError as error:
        pytest.skip(f"the default model cannot be had: {error.message}")
    data = str(tmp_path_factory.mktemp("data"))
    with serving("--session-len", "1024", "--data-dir", data) as server:
        yield server
