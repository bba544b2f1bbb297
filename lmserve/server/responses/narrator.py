"""Answers that are kept, told as events."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from lmserve.protocol.responses import events as wire
from lmserve.server.responses.item_events import ItemEvents, event, last_done
from lmserve.server.responses.item_views import output_items
from lmserve.server.responses.views import response_object
from lmserve.service.answers.records import (
    Notice,
    Queued,
    Record,
    SteerApplied,
    Steered,
    SteerFailed,
    SteerPending,
    Updated,
)
from lmserve.service.items import parts_of
from lmserve.service.streams.stream import StreamEvent
from lmserve.types import TextDelta

_ENDS = {
    "completed": wire.ResponseCompletedEvent,
    "incomplete": wire.ResponseIncompleteEvent,
    "cancelled": wire.ResponseIncompleteEvent,
    "failed": wire.ResponseFailedEvent,
}


class ResponseNarrator:
    """Tells one answer."""

    __slots__ = ("_id", "_items")

    def __init__(self) -> None:
        self._id = ""
        self._items: ItemEvents | None = None  # none are told where nothing is said

    def opening(self, record: Record, number: int) -> Sequence[StreamEvent]:
        self._id = record.id
        if record.message_id is not None:
            self._items = ItemEvents(record.message_id)
        response = response_object(record)
        created = wire.ResponseCreatedEvent(sequence_number=number, response=response)
        if record.status == "queued":
            response = msgspec.structs.replace(response, status="in_progress")
        return (
            event(created),
            event(wire.ResponseInProgressEvent(sequence_number=number + 1, response=response)),
        )

    def delta(self, delta: TextDelta, number: int) -> Sequence[StreamEvent]:
        return () if self._items is None else self._items.tell(parts_of(delta), number)

    def notice(self, notice: Notice, number: int) -> StreamEvent:
        match notice:
            case Queued():
                return event(
                    wire.SessionQueuedEvent(
                        sequence_number=number,
                        response_id=self._id,
                        position=notice.position,
                        estimate_s=notice.estimate_s,
                    )
                )
            case Steered():
                steer = wire.ResponseSteerRef(id=notice.id, previous_response_id=notice.response)
                return event(wire.ResponseSteerAcceptedEvent(sequence_number=number, steer=steer))
            case SteerPending():
                return event(_steer_pending(notice, number))
            case SteerFailed():
                return event(_steer_failed(notice, number))
            case SteerApplied():
                return event(
                    wire.SessionSteerAppliedEvent(
                        sequence_number=number,
                        steer_id=notice.id,
                        response_id=notice.response,
                        successor_id=notice.successor,
                        token_index=notice.token_index,
                    )
                )
            case Updated():
                return event(
                    wire.SessionUpdatedEvent(
                        sequence_number=number,
                        response_id=notice.response,
                        token_index=notice.token_index,
                        changes=_changes(notice.changes),
                    )
                )

    def closing(self, record: Record, number: int) -> Sequence[StreamEvent]:
        items = output_items(record)
        events = last_done(items, number)
        end = _ENDS[record.status]
        last = end(sequence_number=number + len(events), response=response_object(record, items))
        return [*events, event(last)]


def _steer_pending(notice: SteerPending, number: int) -> wire.ResponseSteerPendingEvent:
    return wire.ResponseSteerPendingEvent(
        sequence_number=number,
        steer=wire.ResponseSteerRef(id=notice.id, previous_response_id=notice.response),
        required_input=[
            wire.ResponseRequiredInput(call_id=id, name=name) for id, name in notice.calls.items()
        ],
    )


def _steer_failed(notice: SteerFailed, number: int) -> wire.ResponseSteerFailedEvent:
    return wire.ResponseSteerFailedEvent(
        sequence_number=number,
        steer=wire.ResponseSteerReturned(
            id=notice.id, previous_response_id=notice.response, input=notice.input
        ),
        error=wire.ResponseSteerError(code=notice.code, message=notice.message),
    )


def _changes(changes: Mapping[str, Any]) -> wire.SessionChanges:
    names = {"max_tokens": "max_output_tokens"}
    given = {names.get(name, name): value for name, value in changes.items()}
    if "stop" in given:
        given["stop"] = list(given["stop"])
    return wire.SessionChanges(**given)
