"""Ollama's `/api/embed` and `/api/embeddings`: texts as vectors."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta, Struct

from lmserve.protocol.inputs import requests_of
from lmserve.types import GenerateRequest

_UNREAD = Meta(description="Accepted, not used: the model stays as the server was started.")


class _Fields(Struct, kw_only=True):
    """What both routes take."""

    model: Annotated[
        str | None,
        Meta(
            description="A `name` of `GET /api/tags`; `:latest` may follow. Default: the model "
            "that is served."
        ),
    ] = None
    options: Annotated[dict[str, Any] | None, _UNREAD] = None
    keep_alive: Annotated[str | float | None, _UNREAD] = None


class OllamaEmbedRequest(_Fields, kw_only=True):
    """Texts to make vectors of."""

    input: Annotated[str | list[str], Meta(description="A text, or several.")]
    dimensions: Annotated[
        int | None, Meta(description="Keep the first so many. Default: all the model has.")
    ] = None
    truncate: Annotated[
        bool | None,
        Meta(description="Accepted, not used: a text longer than the context is refused."),
    ] = None

    def to_generate(self, owner: str, model: str) -> list[GenerateRequest]:
        inputs: Any = self.input
        return requests_of(inputs, "input", model=model, owner=owner)


class OllamaEmbedResponse(Struct, kw_only=True):
    """In the order of the texts."""

    model: str
    embeddings: Annotated[list[list[float]], Meta(description="Each of length 1.")]
    total_duration: Annotated[int, Meta(description="Nanoseconds, as the other.")]
    load_duration: int = 0
    prompt_eval_count: Annotated[int, Meta(description="Tokens of all texts.")]


class OllamaEmbeddingsRequest(_Fields, kw_only=True):
    """A text to make a vector of; the older form."""

    prompt: str

    def to_generate(self, owner: str, model: str) -> list[GenerateRequest]:
        return requests_of(self.prompt, "prompt", model=model, owner=owner)


class OllamaEmbeddingsResponse(Struct, kw_only=True):
    embedding: Annotated[list[float], Meta(description="As it is, not scaled to length 1.")]
