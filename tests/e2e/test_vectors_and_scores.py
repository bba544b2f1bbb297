"""Embeddings, scores and losses over HTTP, of the default model in float32, against
transformers."""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterator
from typing import Any

import orjson
import pytest
import requests
import torch

from lmserve.protocol.scoring import ScoreRequest
from tests.e2e.conftest import ServerProcess, serving
from tests.e2e.test_default_model import default_model, transformers_model

pytestmark = [pytest.mark.slow, pytest.mark.network, pytest.mark.timeout(300)]

TEXTS = ["The capital of France is Paris.", "def fibonacci(n):\n    return n", "ü"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    data = str(tmp_path_factory.mktemp("data"))
    model = str(default_model())
    options = ("--dtype", "float32", "--device", "cpu", "--session-len", "512", "--data-dir", data)
    with serving(model, *options) as process:
        yield process


def ask(server: ServerProcess, path: str, **fields: Any) -> Any:
    response = requests.post(server.url + path, data=orjson.dumps(fields), timeout=100)
    assert response.status_code == 200, response.text
    return response.json()


def ids_of(server: ServerProcess, text: str, **fields: Any) -> list[int]:
    ids: list[int] = ask(server, "/tokenize", prompt=text, **fields)["tokens"]
    return ids


@torch.no_grad()
def states(ids: list[int]) -> torch.Tensor:
    """After the last norm: (tokens, hidden)."""
    out = transformers_model()(torch.tensor([ids]), output_hidden_states=True)
    return out.hidden_states[-1][0]


@torch.no_grad()
def logprobs(ids: list[int]) -> torch.Tensor:
    """Of each token but the first."""
    rows = torch.log_softmax(transformers_model()(torch.tensor([ids])).logits[0].float(), -1)
    return rows[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0]


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_embeddings(server: ServerProcess, pooling: str) -> None:
    asked = {"input": TEXTS, "pooling": pooling}
    plain = ask(server, "/v1/embeddings", **asked, normalize=False)["data"]
    scaled = ask(server, "/v1/embeddings", **asked, encoding_format="base64")["data"]
    for text, one, other in zip(TEXTS, plain, scaled, strict=True):
        hidden = states(ids_of(server, text))
        expected = hidden.mean(0) if pooling == "mean" else hidden[-1]
        assert (torch.tensor(one["embedding"]) - expected).abs().max() < 1e-4
        raw = base64.b64decode(other["embedding"])
        unit = torch.tensor(struct.unpack(f"<{len(expected)}f", raw))
        assert (unit - expected / expected.norm()).abs().max() < 1e-4


def test_scores(server: ServerProcess) -> None:
    pairs = {"text_1": "What do cats eat?", "text_2": ["Cats eat mice.", "Rome is in Italy."]}
    found = ask(server, "/v1/score", **pairs)["data"]
    prompts = ScoreRequest(**pairs).to_generate("", chats=True)
    for prompt, one in zip(prompts, found, strict=True):
        ids = ask(server, "/tokenize", messages=prompt.messages)["tokens"]
        for label, logprob in zip(("yes", "no"), one["log_likelihoods"], strict=True):
            label_ids = ids_of(server, label, add_special_tokens=False)
            expected = logprobs(ids + label_ids)[-len(label_ids) :].sum().item()
            assert logprob == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("text", TEXTS[:2])
def test_losses(server: ServerProcess, text: str) -> None:
    ids = ids_of(server, text)
    for given in (text, ids):
        body = ask(server, "/get_ppl", input=given)
        assert body["num_tokens"] == len(ids) - 1
        assert body["ppl"] == pytest.approx(-logprobs(ids).mean().item(), abs=1e-3)
