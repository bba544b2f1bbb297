"""`GET /health` and `GET /version`."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

Status = Literal["healthy", "sleeping", "initializing", "unhealthy"]
State = Literal[
    "loading", "ready", "stuck", "restarting", "sleeping", "failed", "closed", "draining"
]

_STATUSES: dict[State, Status] = {
    "ready": "healthy",
    "sleeping": "sleeping",
    "loading": "initializing",
}


class HealthResponse(Struct, kw_only=True):
    """200 when `status` is `healthy` or `sleeping`, else 503."""

    status: Annotated[Status, Meta(description="In LMDeploy's words.")]
    message: Annotated[str, Meta(description="One line for people.")]
    state: Annotated[State, Meta(description="The same, finer.")]
    heard_s: Annotated[float, Meta(description="Seconds since the engine last answered.")]
    node_id: Annotated[
        str, Meta(description="Of this server: the ids that it gives begin so, after the prefix.")
    ]

    requests_left: Annotated[
        int | UnsetType, Meta(description="While it drains: that may still finish.")
    ] = UNSET
    seconds_left: Annotated[
        float | UnsetType, Meta(description="While it drains: until they are ended.")
    ] = UNSET

    @classmethod
    def of(cls, state: State, message: str, heard_s: float, node_id: str) -> HealthResponse:
        status = _STATUSES.get(state, "unhealthy")
        return cls(
            status=status,
            message=message,
            state=state,
            heard_s=round(heard_s, 3),
            node_id=node_id,
        )

    @property
    def http_status(self) -> int:
        return 200 if self.status in ("healthy", "sleeping") else 503


class VersionResponse(Struct, kw_only=True):
    version: str
