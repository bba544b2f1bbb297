"""`/v1/batches`: files of requests, run when nobody waits."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

DEFAULT_LIMIT = 20
MAX_LIMIT = 100

BatchStatus = Literal[
    "validating",
    "failed",
    "in_progress",
    "finalizing",
    "completed",
    "expired",
    "cancelling",
    "cancelled",
]


class BatchExpiresAfter(Struct, kw_only=True):
    """How long the files that a batch writes are kept."""

    anchor: Literal["created_at"]
    seconds: Annotated[int, Meta(description="3600 to 2592000.")]


class BatchCreate(Struct, kw_only=True):
    """A batch to run."""

    input_file_id: Annotated[
        str,
        Meta(
            description="A file with `purpose` `batch`. Each line is a request: `custom_id`, "
            "`method` (`POST`), `url` (the batch's `endpoint`) and `body`."
        ),
    ]
    endpoint: Annotated[
        str,
        Meta(
            description="`/v1/chat/completions`, `/v1/completions`, `/v1/embeddings`, `/v1/score` "
            "or `/v1/rerank`."
        ),
    ]
    completion_window: Annotated[
        str, Meta(description="`24h`, or another number of hours up to `168h`.")
    ]
    metadata: Annotated[
        dict[str, str] | None, Meta(description="Up to 16 pairs of yours, told back.")
    ] = None
    output_expires_after: Annotated[
        BatchExpiresAfter | None, Meta(description="Default: 30 days.")
    ] = None


class BatchError(Struct, kw_only=True):
    """Why a batch failed before any of it was run."""

    code: str
    message: str
    param: str | None
    line: Annotated[int | None, Meta(description="From 1.")]


class BatchErrors(Struct, kw_only=True):
    object: Literal["list"] = "list"
    data: list[BatchError]


class BatchCounts(Struct, kw_only=True):
    """Requests whose results are kept."""

    total: int
    completed: int
    failed: int


class BatchInputDetails(Struct, kw_only=True):
    cached_tokens: int


class BatchOutputDetails(Struct, kw_only=True):
    reasoning_tokens: int


class BatchUsage(Struct, kw_only=True):
    """Tokens of all answers so far."""

    input_tokens: int
    input_tokens_details: BatchInputDetails
    output_tokens: int
    output_tokens_details: BatchOutputDetails
    total_tokens: int


class BatchObject(Struct, kw_only=True):
    """A batch."""

    id: str
    object: Literal["batch"] = "batch"
    endpoint: str
    model: str | None
    errors: BatchErrors | None
    input_file_id: str
    completion_window: str
    status: BatchStatus
    output_file_id: Annotated[
        str | None, Meta(description="Answers, one a line, once the batch has ended.")
    ]
    error_file_id: Annotated[
        str | None, Meta(description="Requests that failed, one a line, once it has ended.")
    ]
    created_at: int
    in_progress_at: int | None
    expires_at: int
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: BatchCounts
    usage: BatchUsage
    metadata: dict[str, str] | None


class BatchList(Struct, kw_only=True):
    """A page of batches, the newest first."""

    object: Literal["list"] = "list"
    data: list[BatchObject]
    first_id: str | None
    last_id: str | None
    has_more: bool
