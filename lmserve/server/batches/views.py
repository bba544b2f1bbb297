"""Files and batches as the wire tells them."""

from __future__ import annotations

from typing import cast

from lmserve.protocol.batches import batches as wire
from lmserve.protocol.batches.files import FileObject, Purpose
from lmserve.service.batches.records import ENDED, BatchRecord, FileRecord


def file_object(record: FileRecord) -> FileObject:
    return FileObject(
        id=record.id,
        bytes=record.num_bytes,
        created_at=int(record.created),
        expires_at=_time(record.expires),
        filename=record.filename,
        purpose=cast("Purpose", record.purpose),
    )


def batch_object(record: BatchRecord) -> wire.BatchObject:
    has_ended = record.status in ENDED  # its files are there
    ended = {record.status: _time(record.ended)} if has_ended else {}
    tokens = record.tokens
    return wire.BatchObject(
        id=record.id,
        endpoint=record.endpoint,
        model=record.model,
        errors=_errors(record),
        input_file_id=record.input_file_id,
        completion_window=record.completion_window,
        status=record.status,
        output_file_id=record.output_file_id if has_ended else None,
        error_file_id=record.error_file_id if has_ended else None,
        created_at=int(record.created),
        in_progress_at=_time(record.in_progress),
        expires_at=int(record.expires),
        finalizing_at=_time(record.finalizing),
        completed_at=ended.get("completed"),
        failed_at=ended.get("failed"),
        expired_at=ended.get("expired"),
        cancelling_at=_time(record.cancelling),
        cancelled_at=ended.get("cancelled"),
        request_counts=wire.BatchCounts(
            total=record.num_lines, completed=record.num_completed, failed=record.num_failed
        ),
        usage=wire.BatchUsage(
            input_tokens=tokens.input,
            input_tokens_details=wire.BatchInputDetails(cached_tokens=tokens.cached),
            output_tokens=tokens.output,
            output_tokens_details=wire.BatchOutputDetails(reasoning_tokens=tokens.reasoning),
            total_tokens=tokens.input + tokens.output,
        ),
        metadata=record.metadata,
    )


def _errors(record: BatchRecord) -> wire.BatchErrors | None:
    if not record.errors:
        return None
    return wire.BatchErrors(
        data=[
            wire.BatchError(code=one.code, message=one.message, param=one.param, line=one.line)
            for one in record.errors
        ]
    )


def _time(when: float | None) -> int | None:
    return None if when is None else int(when)
