"""Answers told as events: the shapes are those of the official client's types, strictly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import orjson
import pytest
from openai.types import responses as sdk
from pydantic import BaseModel

from lmserve.protocol.responses.events import RESPONSE_EVENTS, event_name
from lmserve.protocol.responses.requests import ResponseCreate
from lmserve.server.responses.item_views import input_items
from lmserve.server.responses.narrator import ResponseNarrator
from lmserve.server.responses.views import response_object
from lmserve.service.answers.records import (
    Queued,
    Record,
    SteerApplied,
    Steered,
    SteerFailed,
    SteerPending,
    Updated,
)
from lmserve.service.items import Items
from lmserve.service.sessions.tree import Node
from lmserve.service.streams.stream import StreamEvent
from lmserve.types import (
    CallArguments,
    CallBegun,
    Content,
    Part,
    Reasoning,
    TextDelta,
    Usage,
)
from tests.server.sdk_types import TYPES


def a_record(**changes: Any) -> Record:
    body = b"""{"input": "hi", "temperature": 0.5, "metadata": {"a": "b"}, "tool_choice":
        {"type": "function", "name": "f"}, "tools": [{"type": "function", "name": "f"}],
        "text": {"format": {"type": "json_schema", "name": "x", "schema": {}}},
        "reasoning": {"effort": "low", "summary": "auto"}}"""
    told = msgspec.json.decode(body, type=ResponseCreate).told()
    record = Record(
        id="resp_1",
        owner="",
        session="sess_1",
        previous=None,
        created=1000.5,
        model="mock",
        told=told,
        input_ids=(1,),
        message_id=2,
    )
    for name, value in changes.items():
        setattr(record, name, value)
    return record


def an_end(**changes: Any) -> Record:
    usage = Usage(prompt_tokens=10, completion_tokens=2, cached_tokens=4)
    ended = {"status": "completed", "ended": 1002.25, "text": "Hello", "usage": usage}
    return a_record(**ended | changes)


def read(events: Sequence[StreamEvent], *, first: int = 0) -> list[dict[str, Any]]:
    """Each is numbered, named by its type, and what the official client takes it for."""
    told = []
    for number, event in enumerate(events, first):
        data = orjson.loads(event.data)
        assert data["type"] == event.name.decode()
        assert data["sequence_number"] == number
        assert list(data)[:2] == ["type", "sequence_number"]
        if data["type"] in TYPES:
            TYPES[data["type"]].model_validate_json(event.data, strict=True)
        told.append(data)
    return told


def test_an_answer() -> None:
    narrator = ResponseNarrator()
    events = [*narrator.opening(a_record(), 0)]
    for text in ("", "Hel", 'lo"\n\u2028'):
        events += narrator.delta(TextDelta(text, []), len(events))
    events += narrator.closing(an_end(text='Hello"\n\u2028'), len(events))
    told = read(events)
    assert [each["type"] for each in told] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert told[0]["response"]["output"] == [] and told[0]["response"]["status"] == "in_progress"
    assert told[0]["response"]["usage"] is None
    assert {each["item_id"] for each in told if "item_id" in each} == {"msg_2"}
    assert "".join(each.get("delta", "") for each in told) == told[6]["text"] == 'Hello"\n\u2028'
    end = told[-1]["response"]
    assert end["output"] == [told[-2]["item"]]
    assert end["usage"]["input_tokens_details"] == {"cached_tokens": 4, "cache_write_tokens": 6}
    assert (end["usage"]["output_tokens"], end["usage"]["total_tokens"]) == (2, 12)
    assert (end["created_at"], end["completed_at"]) == (1000, 1002)
    assert (end["session"], end["message_id"]) == ("sess_1", "msg_2")
    assert end["input_message_ids"] == ["msg_1"]
    assert (end["temperature"], end["metadata"]) == (0.5, {"a": "b"})


def test_numbers_go_on_where_they_are_told_to() -> None:
    narrator = ResponseNarrator()
    narrator.opening(a_record(), 0)
    read(narrator.delta(TextDelta("a", []), 7), first=7)
    read(narrator.delta(TextDelta("b", []), 10), first=10)
    read(narrator.closing(an_end(), 11), first=11)


SAID: list[Part] = [
    Reasoning("H"),
    Reasoning("m"),
    Content("Let me see."),
    CallBegun(0, "call_a", "f"),
    CallArguments(0, '{"a":'),
    CallArguments(0, "1}"),
    CallBegun(1, "call_b", "g"),
    CallArguments(1, "{}"),
    Content("Now wait."),
]


@pytest.mark.parametrize("size", [1, 2, 4, 9])
def test_items_are_told_one_after_another(size: int) -> None:
    """However the parts come together, and whoever tells the end."""
    record = an_end(text="raw", items=Items(SAID).whole(cut=False))
    narrator = ResponseNarrator()
    events = [*narrator.opening(a_record(), 0)]
    for begin in range(0, len(SAID), size):
        events += narrator.delta(TextDelta("x", [], SAID[begin : begin + size]), len(events))
    events += ResponseNarrator().closing(record, len(events))
    told = read(events)[2:-1]
    text, thought, call = "output_text", "reasoning_text", "function_call_arguments"

    def item(*names: str) -> list[str]:
        return ["output_item.added", *names, "output_item.done"]

    def part(kind: str, num_deltas: int) -> list[str]:
        deltas = [f"{kind}.delta"] * num_deltas
        return item("content_part.added", *deltas, f"{kind}.done", "content_part.done")

    assert [each["type"].removeprefix("response.") for each in told] == [
        *part(thought, 2),
        *part(text, 1),
        *item(f"{call}.delta", f"{call}.delta", f"{call}.done"),
        *item(f"{call}.delta", f"{call}.done"),
        *part(text, 1),
    ]
    output = orjson.loads(events[-1].data)["response"]["output"]
    assert output == [each["item"] for each in told if each["type"].endswith("item.done")]
    assert [each["id"] for each in output] == ["rs_2", "msg_2", "fc_2_2", "fc_2_3", "msg_2_4"]
    assert [each["type"] for each in output] == [
        "reasoning", "message", "function_call", "function_call", "message",
    ]  # fmt: skip
    assert {each["status"] for each in output} == {"completed"}
    assert output[0]["content"] == [{"type": "reasoning_text", "text": "Hm"}]
    assert output[2] | {"id": ""} == {
        "type": "function_call", "id": "", "call_id": "call_a", "name": "f",
        "arguments": '{"a":1}', "status": "completed",
    }  # fmt: skip
    for each in told:
        index = each["output_index"]
        assert each.get("item_id", output[index]["id"]) == output[index]["id"]


@pytest.mark.parametrize(
    ("parts", "statuses"),
    [
        (SAID[:2], ["incomplete"]),
        (SAID[:5], ["completed", "completed", "incomplete"]),
        (SAID[:6], ["completed", "completed", "completed"]),  # the call was whole
    ],
)
def test_an_answer_that_was_cut(parts: list[Part], statuses: list[str]) -> None:
    items = Items(parts).whole(cut=True)
    record = an_end(status="incomplete", reason="steered", text="raw", items=items)
    told = read(ResponseNarrator().closing(record, 0))
    assert [each["status"] for each in told[-1]["response"]["output"]] == statuses
    sdk.Response.model_validate_json(msgspec.json.encode(response_object(record)), strict=True)


def test_an_answer_that_says_nothing() -> None:
    told = read(ResponseNarrator().closing(an_end(text=""), 2), first=2)
    assert [each["type"] for each in told] == ["response.completed"]
    assert told[0]["response"]["output"] == []


def test_an_answer_without_a_message() -> None:
    told = read(ResponseNarrator().opening(a_record(message_id=None), 0))
    assert told[0]["response"]["message_id"] is None


@pytest.mark.parametrize(
    ("changes", "name", "item"),
    [
        ({"status": "incomplete", "reason": "max_output_tokens"}, "incomplete", "incomplete"),
        ({"status": "incomplete", "reason": "steered"}, "incomplete", "incomplete"),
        ({"status": "cancelled"}, "incomplete", "incomplete"),
        ({"status": "failed", "error": ("engine_error", "out of luck")}, "failed", "incomplete"),
    ],
)
def test_other_ends(changes: dict[str, Any], name: str, item: str) -> None:
    """A narrator that saw nothing of the answer tells its end."""
    told = read(ResponseNarrator().closing(an_end(**changes), 5), first=5)
    assert told[-1]["type"] == f"response.{name}"
    response = told[-1]["response"]
    assert response["status"] == changes["status"]
    assert response["output"][0]["status"] == item
    assert response["completed_at"] is None
    assert response["incomplete_details"] == (
        {"reason": changes["reason"]} if "reason" in changes else None
    )


def test_a_failure_has_a_code_that_clients_know() -> None:
    record = an_end(status="failed", error=("engine_error", "out of luck"))
    error = response_object(record).error
    assert error is not None
    assert (error.code, error.type, error.message) == (
        "server_error",
        "engine_error",
        "out of luck",
    )


def test_waiting_in_the_background() -> None:
    created, running = read(ResponseNarrator().opening(a_record(status="queued"), 0))
    assert created["response"]["status"] == "queued"
    assert running["response"]["status"] == "in_progress"


def test_notices() -> None:
    narrator = ResponseNarrator()
    narrator.opening(a_record(), 0)

    def tell(notice: Any) -> dict[str, Any]:
        [told] = read([narrator.notice(notice, 9)], first=9)
        return {name: told[name] for name in told if name not in ("type", "sequence_number")}

    assert tell(Queued(position=3, estimate_s=None)) == {
        "response_id": "resp_1",
        "position": 3,
        "estimate_s": None,
    }
    steer = {"id": "steer_1", "previous_response_id": "resp_1"}
    assert tell(Steered(id="steer_1", response="resp_1")) == {"steer": steer}
    assert tell(SteerPending("steer_1", "resp_1", {"call_a": "f"})) == {
        "steer": steer,
        "reason": "waiting_for_required_input",
        "required_input": [{"type": "function_call_output", "call_id": "call_a", "name": "f"}],
    }
    failed = SteerFailed("steer_1", "resp_1", "response_already_completed", "too late", "stop")
    assert tell(failed) == {
        "steer": steer | {"input": "stop"},
        "error": {
            "type": "invalid_request_error",
            "code": "response_already_completed",
            "message": "too late",
        },
    }
    assert tell(SteerApplied("steer_1", "resp_1", "resp_2", 12)) == {
        "steer_id": "steer_1",
        "response_id": "resp_1",
        "successor_id": "resp_2",
        "token_index": 12,
    }
    changes = {"max_tokens": 5, "stop": ("x",)}
    assert tell(Updated("resp_1", 4, changes)) == {
        "response_id": "resp_1",
        "token_index": 4,
        "changes": {"max_output_tokens": 5, "stop": ["x"]},
    }


def test_every_event_is_known() -> None:
    names = [event_name(kind) for kind in RESPONSE_EVENTS]
    assert len(set(names)) == len(names)
    assert {name for name in names if name.startswith("response.")} == set(TYPES)


@pytest.mark.parametrize("changes", [{}, {"status": "queued"}, {"status": "in_progress"}])
def test_objects_are_what_the_client_takes_them_for(changes: dict[str, Any]) -> None:
    data = msgspec.json.encode(response_object(a_record(**changes)))
    assert sdk.Response.model_validate_json(data, strict=True).output_text == ""


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ({"role": "user", "content": "hi"}, sdk.ResponseInputMessageItem),
        (
            {"role": "system", "content": [{"type": "text", "text": "a"}]},
            sdk.ResponseInputMessageItem,
        ),
        ({"role": "assistant", "content": "Hello"}, sdk.ResponseOutputMessage),
        (
            {"role": "tool", "content": "1", "tool_call_id": "c"},
            sdk.ResponseFunctionToolCallOutputItem,
        ),
    ],
)
def test_items(message: dict[str, Any], kind: type[BaseModel]) -> None:
    [item] = input_items(Node(1, None, message, 0.0, 0))
    kind.model_validate_json(msgspec.json.encode(item), strict=True)
