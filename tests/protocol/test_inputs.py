"""Several prompts of one call."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from lmserve.errors import InvalidField
from lmserve.protocol.embeddings import EmbeddingRequest
from lmserve.protocol.inputs import MAX_INPUTS
from lmserve.protocol.ollama.embed import OllamaEmbedRequest
from lmserve.protocol.openai.completions import CompletionRequest
from lmserve.protocol.scoring import RerankRequest
from lmserve.protocol.tokens import EncodeRequest
from lmserve.types import GenerateRequest

Make = Callable[[list[str]], Sequence[GenerateRequest]]


@pytest.mark.parametrize(
    ("make", "param"),
    [
        (lambda texts: CompletionRequest(prompt=[*texts]).to_generate(), "prompt"),
        (lambda texts: EmbeddingRequest(input=[*texts]).to_generate(""), "input"),
        (lambda texts: EncodeRequest(input=texts).to_generate(), "input"),
        (lambda texts: OllamaEmbedRequest(input=texts).to_generate("", "m"), "input"),
        (
            lambda texts: RerankRequest(query="q", documents=[*texts]).to_generate("", chats=True),
            "documents",
        ),
    ],
)
def test_more_than_any_route_takes_are_not_made_requests(make: Make, param: str) -> None:
    assert len(make(["a"] * 8)) == 8
    with pytest.raises(InvalidField, match=f"{param} has .* send several calls") as error:
        make(["a"] * (MAX_INPUTS + 1))
    assert error.value.param == param
