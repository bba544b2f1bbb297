"""`/sleep`, `/wakeup`, `/is_sleeping`, `/terminate`, `/abort_request`: LMDeploy's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from msgspec import Meta, Struct

from lmserve.errors import InvalidField

SLEEP_LEVELS = ("1", "2")
WAKE_TAGS = ("weights", "kv_cache")


class SleepingResponse(Struct, kw_only=True):
    is_sleeping: bool


class AbortRequest(Struct, kw_only=True):
    """Which answers to end."""

    abort_all: Annotated[bool | None, Meta(description="End all answers. Default: false.")] = None
    session_id: Annotated[
        int | None, Meta(description="End those asked for with this `session_id`; -1: none.")
    ] = None
    finished_reason: Annotated[Any, Meta(description="Accepted, not used: it is `abort`.")] = None
    abort_message: Annotated[str | None, Meta(description="Accepted, not used.")] = None

    def target(self) -> int | None:
        """The session id; None: all. Raises InvalidField."""
        if self.abort_all:
            return None
        if self.session_id is None or self.session_id == -1:
            raise InvalidField(
                "session_id is needed: give that of the answer to end, or abort_all true",
                param="session_id",
            )
        return self.session_id


def check_level(level: str) -> None:
    """Both levels give all memory back here."""
    if level not in SLEEP_LEVELS:
        raise InvalidField(f"level is {level[:50]!r}: it must be 1 or 2", param="level")


def check_tags(tags: Sequence[str]) -> None:
    """Whatever of the two is named, the engine wakes as a whole."""
    for tag in tags:
        if tag not in WAKE_TAGS:
            raise InvalidField(
                f"there is no tag {tag[:50]!r}: tags are {' and '.join(WAKE_TAGS)}", param="tags"
            )
