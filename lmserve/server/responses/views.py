"""Records of answers as the protocol tells them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from lmserve.protocol.responses.items import ResponseOutputItem
from lmserve.protocol.responses.objects import (
    TOLD,
    ResponseFailure,
    ResponseIncompleteDetails,
    ResponseObject,
    ResponseUsage,
)
from lmserve.protocol.sessions import message_id
from lmserve.server.responses.item_views import output_items
from lmserve.service.answers.records import Record, has_logprobs

_UNTOLD = frozenset(("queued", "in_progress"))


async def response_of(record: Record) -> ResponseObject:
    """Off the loop where there are log probabilities: of many, they take seconds."""
    if has_logprobs(record):
        return await asyncio.to_thread(response_object, record)
    return response_object(record)


def response_object(
    record: Record, items: Sequence[ResponseOutputItem] | None = None
) -> ResponseObject:
    """What was said is in its output once it has ended. `items`: that, where it is made."""
    if items is None:
        items = [] if record.status in _UNTOLD else output_items(record)
    told = {name: value for name, value in record.told.items() if name in TOLD}
    told.setdefault("background", record.background)
    completed = record.status == "completed" and record.ended is not None
    return ResponseObject(
        id=record.id,
        created_at=int(record.created),
        completed_at=int(record.ended or 0) if completed else None,
        status=record.status,
        error=None if record.error is None else ResponseFailure.of(*record.error),
        incomplete_details=(
            None if record.reason is None else ResponseIncompleteDetails(reason=record.reason)
        ),
        model=record.model,
        output=list(items),
        previous_response_id=record.previous,
        successor=record.successor,
        usage=None if record.usage is None else ResponseUsage.of(record.usage),
        session=record.session,
        input_message_ids=[message_id(id) for id in record.input_ids],
        message_id=None if record.message_id is None else message_id(record.message_id),
        **told,
    )
