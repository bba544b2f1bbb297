"""What is kept of files and batches, as JSON beside them."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct, field

Outcome = Literal["failed", "completed", "cancelled", "expired"]
Status = Literal[
    "validating",
    "failed",
    "in_progress",
    "finalizing",
    "completed",
    "expired",
    "cancelling",
    "cancelled",
]
ENDED: tuple[Status, ...] = ("failed", "completed", "expired", "cancelled")


class FileRecord(Struct, kw_only=True):
    id: str
    owner: str
    filename: str  # as its client calls it; never a path here
    purpose: str
    num_bytes: int
    created: float
    expires: float | None


class LineError(Struct, kw_only=True):
    """Why a batch cannot be run."""

    code: str
    message: str
    param: str | None = None
    line: int | None = None  # from 1


class Tokens(Struct, kw_only=True):
    """Used by the answers of a batch."""

    input: int = 0
    cached: int = 0
    output: int = 0
    reasoning: int = 0


class BatchRecord(Struct, kw_only=True):
    """Changed by its run alone, and by who cancels it."""

    id: str
    owner: str
    endpoint: str
    input_file_id: str
    completion_window: str
    created: float
    expires: float
    metadata: dict[str, str] | None = None
    output_expires_after_s: int | None = None
    status: Status = "validating"
    outcome: Outcome | None = None  # nothing is left to run, and this is how it will end
    in_progress: float | None = None  # when it came to be
    finalizing: float | None = None
    cancelling: float | None = None
    ended: float | None = None
    errors: list[LineError] = field(default_factory=list)
    num_lines: int = 0
    num_completed: int = 0
    num_failed: int = 0
    tokens: Tokens = field(default_factory=Tokens)
    model: str | None = None  # that the first answer came from
    output_file_id: str | None = None  # given with the outcome
    error_file_id: str | None = None
