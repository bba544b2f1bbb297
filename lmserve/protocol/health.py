"""`GET /health` and `GET /version`."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct


class HealthResponse(Struct, kw_only=True):
    """200 when `status` is `ready`, else 503."""

    status: Literal["loading", "ready", "stuck", "restarting", "failed", "closed"]
    reason: Annotated[str, Meta(description="One line for people.")]
    heard_s: Annotated[float, Meta(description="Seconds since the engine last answered.")]


class VersionResponse(Struct, kw_only=True):
    version: str
