"""Answers that are kept, told as events. A delta costs one `orjson.dumps` of its text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import orjson

from lmserve.protocol import response_events as wire
from lmserve.protocol.response_objects import ResponseOutputMessage, ResponseOutputText
from lmserve.server.response_views import item_id, output_message, response_object
from lmserve.service.answers.records import (
    Notice,
    Queued,
    Record,
    SteerApplied,
    Steered,
    SteerFailed,
    Updated,
)
from lmserve.service.streams.stream import StreamEvent

_DELTA = wire.event_name(wire.ResponseTextDeltaEvent).encode()
_ENDS = {
    "completed": wire.ResponseCompletedEvent,
    "incomplete": wire.ResponseIncompleteEvent,
    "cancelled": wire.ResponseIncompleteEvent,
    "failed": wire.ResponseFailedEvent,
}


class ResponseNarrator:
    """Tells one answer."""

    __slots__ = ("_delta_head", "_delta_middle", "_id", "_item_id", "_speaks")

    def __init__(self) -> None:
        self._id = ""
        self._item_id = ""
        self._speaks = False  # some text was told
        self._delta_head = b'{"type":"%b","sequence_number":' % _DELTA
        self._delta_middle = b""

    def opening(self, record: Record, number: int) -> Sequence[StreamEvent]:
        self._id, self._item_id = record.id, item_id(record)
        self._delta_middle = (
            b',"item_id":%b,"output_index":0,"content_index":0,"logprobs":[],"delta":'
            % orjson.dumps(self._item_id)
        )
        response = response_object(record)
        created = wire.ResponseCreatedEvent(sequence_number=number, response=response)
        if record.status == "queued":
            response = msgspec.structs.replace(response, status="in_progress")
        return (
            _event(created),
            _event(wire.ResponseInProgressEvent(sequence_number=number + 1, response=response)),
        )

    def delta(self, text: str, number: int) -> Sequence[StreamEvent]:
        if not text:
            return ()
        if not self._speaks:
            self._speaks = True
            return (*self._begun(number), self._delta(text, number + 2))
        return (self._delta(text, number),)

    def notice(self, notice: Notice, number: int) -> StreamEvent:
        match notice:
            case Queued():
                return _event(
                    wire.SessionQueuedEvent(
                        sequence_number=number,
                        response_id=self._id,
                        position=notice.position,
                        estimate_s=notice.estimate_s,
                    )
                )
            case Steered():
                steer = wire.ResponseSteerRef(id=notice.id, previous_response_id=notice.response)
                return _event(wire.ResponseSteerAcceptedEvent(sequence_number=number, steer=steer))
            case SteerFailed():
                return _event(_steer_failed(notice, number))
            case SteerApplied():
                return _event(
                    wire.SessionSteerAppliedEvent(
                        sequence_number=number,
                        steer_id=notice.id,
                        response_id=notice.response,
                        successor_id=notice.successor,
                        token_index=notice.token_index,
                    )
                )
            case Updated():
                return _event(
                    wire.SessionUpdatedEvent(
                        sequence_number=number,
                        response_id=notice.response,
                        token_index=notice.token_index,
                        changes=_changes(notice.changes),
                    )
                )

    def closing(self, record: Record, number: int) -> Sequence[StreamEvent]:
        events: list[wire.ResponseEvent] = []
        if record.text:
            message = output_message(record)
            [part], id = message.content, message.id
            events += (
                wire.ResponseTextDoneEvent(sequence_number=number, item_id=id, text=part.text),
                wire.ResponseContentPartDoneEvent(
                    sequence_number=number + 1, item_id=id, part=part
                ),
                wire.ResponseOutputItemDoneEvent(sequence_number=number + 2, item=message),
            )
        end = _ENDS[record.status]
        events.append(end(sequence_number=number + len(events), response=response_object(record)))
        return [_event(event) for event in events]

    def _begun(self, number: int) -> tuple[StreamEvent, StreamEvent]:
        message = ResponseOutputMessage(id=self._item_id, status="in_progress", content=[])
        part = ResponseOutputText(text="")
        return (
            _event(wire.ResponseOutputItemAddedEvent(sequence_number=number, item=message)),
            _event(
                wire.ResponseContentPartAddedEvent(
                    sequence_number=number + 1, item_id=self._item_id, part=part
                )
            ),
        )

    def _delta(self, text: str, number: int) -> StreamEvent:
        data = self._delta_head + b"%d" % number + self._delta_middle + orjson.dumps(text) + b"}"
        return StreamEvent(_DELTA, data)


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


def _event(event: wire.ResponseEvent) -> StreamEvent:
    return StreamEvent(wire.event_name(type(event)).encode(), msgspec.json.encode(event))
