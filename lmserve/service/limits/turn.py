"""Of when a request runs, and what is kept with its answer."""

from __future__ import annotations

from collections.abc import Mapping

from lmserve.errors import InvalidField
from lmserve.service.limits.field import check_count
from lmserve.types import GenerateRequest

MAX_PRIORITY = 100
MAX_DEADLINE_S = 86400
MAX_SALT_CHARS = 256
MAX_METADATA = 16  # pairs that a client adds
MAX_METADATA_NAME_CHARS = 64
MAX_METADATA_CHARS = 512


def check_turn(request: GenerateRequest) -> None:
    """When it is to run, and beside whose KV."""
    if not 0 <= request.priority <= MAX_PRIORITY:
        raise InvalidField(
            f"priority is {request.priority}: it must be from 0 to {MAX_PRIORITY}; higher waits "
            "for lower",
            param="priority",
        )
    deadline_s = request.deadline_s
    if deadline_s is not None and not 0 < deadline_s <= MAX_DEADLINE_S:
        raise InvalidField(
            f"deadline_s is {deadline_s}: it must be above 0 and at most {MAX_DEADLINE_S}; leave "
            "it out for none",
            param="deadline_s",
        )
    if len(request.cache_salt) > MAX_SALT_CHARS:
        raise InvalidField(
            f"cache_salt has {len(request.cache_salt)} characters: give at most {MAX_SALT_CHARS}",
            param="cache_salt",
        )


def check_metadata(metadata: Mapping[str, str]) -> None:
    """Of an answer that is kept."""
    check_count(metadata, MAX_METADATA, "metadata", "keys")
    for name, value in metadata.items():
        if len(name) > MAX_METADATA_NAME_CHARS:
            raise InvalidField(
                f"metadata has a key of {len(name)} characters: give at most "
                f"{MAX_METADATA_NAME_CHARS}",
                param="metadata",
            )
        if len(value) > MAX_METADATA_CHARS:
            raise InvalidField(
                f"metadata.{name} has {len(value)} characters: give at most {MAX_METADATA_CHARS}",
                param=f"metadata.{name}",
            )
