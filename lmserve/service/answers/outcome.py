"""What the end of a generation makes of the answer that is kept."""

from __future__ import annotations

from lmserve.errors import DeadlineExceeded, LmserveError
from lmserve.service.answers.records import Reason, Status
from lmserve.service.sessions.tree import State
from lmserve.types import Done

# What stopped it, as `Generation.abort_reason`. Anything else cancels.
_ABORTS: dict[str | None, Reason] = {
    "deadline": "deadline",
    "shutdown": "server_shutdown",
    "steered": "steered",
    "abandoned": "abandoned",
}

#: That of its message. None: it is whole.
STATES: dict[Status, State] = {
    "incomplete": "incomplete",
    "cancelled": "incomplete",
    "failed": "failed",
}


def status_of(
    outcome: Done | LmserveError, stopped_by: str | None, *, speaks: bool
) -> tuple[Status, Reason | None]:
    """`speaks` False: its input was to be run, and no more."""
    if isinstance(outcome, DeadlineExceeded):
        return "incomplete", "deadline"
    if not isinstance(outcome, Done):
        return "failed", None
    if outcome.finish_reason in ("stop", "tool_calls"):
        return "completed", None
    if outcome.finish_reason == "length" and not speaks:
        return "completed", None
    if outcome.finish_reason == "length":
        return "incomplete", "max_output_tokens"
    reason = _ABORTS.get(stopped_by)
    return ("cancelled", None) if reason is None else ("incomplete", reason)


def error_of(outcome: Done | LmserveError) -> tuple[str, str] | None:
    """Code and message."""
    if isinstance(outcome, Done):
        return None
    return outcome.code or outcome.type, outcome.message
