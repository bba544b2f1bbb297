"""`/v1/files`: what clients upload for batches, and what batches write."""

from __future__ import annotations

import re
from typing import Annotated, Literal, get_args

from msgspec import Meta, Struct, field

from lmserve.errors import InvalidField

MAX_LIMIT = 10_000
MAX_NAME_CHARS = 255
MAX_FIELD_BYTES = 1024  # of those beside the file

UploadPurpose = Literal["assistants", "batch", "fine-tune", "user_data", "vision"]
Purpose = Literal["assistants", "batch", "batch_output", "fine-tune", "user_data", "vision"]
PURPOSES: tuple[str, ...] = get_args(UploadPurpose)


class FileUpload(Struct, kw_only=True):
    """A form, `multipart/form-data`."""

    file: Annotated[
        str,
        Meta(
            description="The content, with a file name.",
            extra_json_schema={"format": "binary"},
        ),
    ]
    purpose: Annotated[
        UploadPurpose, Meta(description="`batch`: requests, one a line.", examples=["batch"])
    ]
    anchor: Annotated[Literal["created_at"] | None, Meta(description="From when it is kept.")] = (
        field(default=None, name="expires_after[anchor]")
    )
    seconds: Annotated[
        int | None,
        Meta(
            description="How long, 3600 to 2592000. Default: 30 days for `batch`, else until it is "
            "deleted."
        ),
    ] = field(default=None, name="expires_after[seconds]")


class FileObject(Struct, kw_only=True):
    """A file that is kept."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: int | None
    filename: Annotated[str, Meta(description="As its client called it.")]
    purpose: Purpose
    status: Literal["processed"] = "processed"
    status_details: str | None = None


class FileList(Struct, kw_only=True):
    """A page of files."""

    object: Literal["list"] = "list"
    data: list[FileObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class FileDeleted(Struct, kw_only=True):
    id: str
    object: Literal["file"] = "file"
    deleted: bool = True


def file_name(given: str | None) -> str:
    """To be told back: without what terminals and headers take for more than a name."""
    name = re.sub(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]", "", given or "")
    return name[:MAX_NAME_CHARS] or "file"


def purpose_of(given: str | None, name: str = "purpose") -> str:
    """Raises InvalidField."""
    if given is None:
        raise InvalidField(f"{name} is required: {', '.join(PURPOSES)}", param=name)
    if given not in PURPOSES:
        raise InvalidField(
            f"{name} is {given[:50]!r}: it must be one of {', '.join(PURPOSES)}", param=name
        )
    return given


def expires_after(anchor: str | None, seconds: str | None) -> int | None:
    """The two fields of an upload. Raises InvalidField."""
    if anchor is None and seconds is None:
        return None
    if anchor != "created_at":
        raise InvalidField(
            "expires_after[anchor] must be created_at", param="expires_after[anchor]"
        )
    if seconds is None or not re.fullmatch(r"[0-9]{1,9}", seconds):
        raise InvalidField(
            "expires_after[seconds] must be a whole number", param="expires_after[seconds]"
        )
    return int(seconds)
