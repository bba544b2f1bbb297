"""`POST /v1/embeddings`: texts as vectors, the model's own hidden states pooled."""

from __future__ import annotations

import base64
import math
from array import array
from typing import Annotated, Literal

from msgspec import Meta, Struct

from lmserve.errors import InvalidField
from lmserve.protocol.common import Deadline, Priority
from lmserve.protocol.inputs import Inputs, requests_of
from lmserve.types import GenerateRequest

Pooling = Literal["mean", "last"]


class EmbeddingRequest(Struct, kw_only=True):
    """Texts to make vectors of."""

    input: Annotated[
        Inputs,
        Meta(description="A text, a list of texts, a list of token ids, or a list of those."),
    ]
    model: Annotated[
        str | None,
        Meta(description="An `id` of `GET /v1/models`. Default: the model that is served."),
    ] = None
    encoding_format: Annotated[
        Literal["float", "base64"] | None,
        Meta(description="`base64`: of float32, little-endian. Default: numbers."),
    ] = None
    dimensions: Annotated[
        int | None, Meta(description="Keep the first so many. Default: all the model has.")
    ] = None
    pooling: Annotated[
        Pooling | None,
        Meta(
            description="`mean` (default) of the last hidden states of all tokens, or that of the "
            "`last` token."
        ),
    ] = None
    normalize: Annotated[
        bool | None,
        Meta(description="Scale to length 1. Default: true; false: the hidden states as they are."),
    ] = None
    user: Annotated[str | None, Meta(description="Accepted, not used.")] = None
    priority: Priority = None
    deadline_s: Deadline = None

    def to_generate(self, owner: str) -> list[GenerateRequest]:
        """One request a text, in order."""
        return requests_of(
            self.input,
            "input",
            model=self.model,
            priority=self.priority or 0,
            deadline_s=self.deadline_s,
            owner=owner,
        )

    def vector(self, pooled: bytes) -> list[float] | str:
        """As it is asked for, of a hidden state in float32."""
        values = vector_of(pooled, self.dimensions, normalize=self.normalize is not False)
        if self.encoding_format == "base64":
            return base64.b64encode(values.tobytes()).decode()
        return values.tolist()


def vector_of(pooled: bytes, dimensions: int | None = None, *, normalize: bool) -> array[float]:
    """The first so many of it, scaled to length 1 or as they are. Raises InvalidField."""
    values = array("f", pooled)
    num = len(values) if dimensions is None else dimensions
    if not 1 <= num <= len(values):
        raise InvalidField(
            f"dimensions is {num}: this model has {len(values)}; give 1 to {len(values)}",
            param="dimensions",
        )
    values = values[:num]
    if not normalize:
        return values
    length = math.hypot(*values) or 1.0
    return array("f", [value / length for value in values])


class EmbeddingObject(Struct, kw_only=True):
    """Of one text."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: Annotated[
        list[float] | str, Meta(description="Numbers, or with `base64` their bytes.")
    ]


class EmbeddingUsage(Struct, kw_only=True):
    prompt_tokens: int
    total_tokens: int


class EmbeddingResponse(Struct, kw_only=True):
    """In the order of the texts."""

    object: Literal["list"] = "list"
    data: list[EmbeddingObject]
    model: str
    usage: EmbeddingUsage
