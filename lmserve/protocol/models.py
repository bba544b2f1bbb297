"""`GET /v1/models`: what is served."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct, field


class ModelPermission(Struct, kw_only=True):
    """Kept for older clients; the values never change."""

    id: str = "modelperm-lmserve"
    object: Literal["model_permission"] = "model_permission"
    created: int
    allow_create_engine: bool = False
    allow_sampling: bool = True
    allow_logprobs: bool = False
    allow_search_indices: bool = False
    allow_view: bool = True
    allow_fine_tuning: bool = False
    organization: str = "*"
    group: str | None = None
    is_blocking: bool = False


class ModelCard(Struct, kw_only=True):
    """One model served."""

    id: Annotated[str, Meta(description="The name to send as `model`.")]
    object: Literal["model"] = "model"
    created: Annotated[int, Meta(description="Unix time at which it was loaded.")]
    owned_by: str = "lmserve"
    root: str | None = None
    parent: str | None = None
    max_model_len: Annotated[
        int | None, Meta(description="Prompt and answer together, in tokens.")
    ] = None
    permission: list[ModelPermission] = field(default_factory=list)


class ModelList(Struct, kw_only=True):
    """Every model served."""

    object: Literal["list"] = "list"
    data: list[ModelCard]
