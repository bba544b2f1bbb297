"""The words of /v1/sessions: ids, forms of a turn."""

from __future__ import annotations

from typing import Any

import msgspec
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmserve.errors import InvalidField
from lmserve.protocol.decode import decode
from lmserve.protocol.sessions import (
    SessionAppend,
    SessionCreate,
    SessionFork,
    SessionMessage,
    SessionUpdate,
    content_of,
    is_session_id,
    message_id,
    message_number,
    truth,
    whole_number,
)
from lmserve.protocol.turns import TurnBody


def read(kind: Any, **fields: Any) -> Any:
    return decode(orjson.dumps(fields), kind)[0]


@given(st.integers(1, 10**18 - 1))
def test_message_ids_are_read_as_written(number: int) -> None:
    assert message_number(message_id(number)) == number


@given(st.text(max_size=30))
def test_nothing_else_is_a_message_id(id: str) -> None:
    number = message_number(id)
    assert number is None or message_id(number) == id


@pytest.mark.parametrize(
    "id", ["msg_0", "msg_01", "msg_-1", "msg_", "1", "msg_1\n", "msg_" + "9" * 40]
)
def test_odd_message_ids(id: str) -> None:
    assert message_number(id) is None


def test_session_ids() -> None:
    for id in ("1", "sess_0af", "a.b-C_9", "x" * 64):
        assert is_session_id(id)
    for id in ("", "x" * 65, "a b", "ä", "a/b", "a\n", ".", "..", "import"):
        assert not is_session_id(id)
        for kind in (SessionCreate, SessionFork):
            with pytest.raises(InvalidField, match="id is") as caught:
                read(kind, id=id).check()
            assert caught.value.param == "id"


def test_an_absent_head_is_no_null() -> None:
    assert read(SessionUpdate, head=None).head is None
    assert read(SessionUpdate).head != read(SessionUpdate, head=None).head


def test_messages_keep_what_was_sent() -> None:
    sent = [{"role": "user", "content": [{"type": "text", "text": "hi"}], "name": "ann"}]
    assert read(SessionAppend, messages=sent).plain() == sent
    with pytest.raises(InvalidField, match="messages is empty"):
        read(SessionAppend, messages=[]).plain()


@pytest.mark.parametrize(
    "fields",
    [
        {"input": "hi"},
        {"input": [{"role": "user", "content": "hi"}]},
        {"input": "hi", "after": "msg_1"},
        {"input": "hi", "edit": "msg_1"},
        {"regenerate": "msg_1"},
    ],
)
def test_the_forms_of_a_turn(fields: dict[str, Any]) -> None:
    asked = read(TurnBody, **fields)
    asked.check()
    said = [{"role": "user", "content": "hi"}] if "input" in fields else []
    assert asked.to_generate("me").messages == said


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "input"),
        ({"edit": "msg_1"}, "input"),
        ({"after": "msg_1"}, "input"),
        ({"input": "hi", "after": "msg_1", "edit": "msg_1"}, "edit"),
        ({"input": "hi", "regenerate": "msg_1"}, "regenerate"),
        ({"after": "msg_1", "regenerate": "msg_1"}, "regenerate"),
        ({"edit": "msg_1", "regenerate": "msg_1"}, "regenerate"),
        ({"input": "hi", "continue": "msg_1"}, "continue"),
        ({"regenerate": "msg_1", "continue": "msg_1"}, "continue"),
    ],
)
def test_any_other_form_is_refused(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidField, match="give one of") as caught:
        read(TurnBody, **fields).check()
    assert caught.value.param == param


@pytest.mark.parametrize("empty", ["", []])
def test_an_empty_input(empty: Any) -> None:
    with pytest.raises(InvalidField, match="input is empty"):
        read(TurnBody, input=empty).check()


def test_sampling_fields_of_a_turn() -> None:
    asked = read(TurnBody, input="hi", temperature=0, max_tokens=3, max_output_tokens=4)
    wanted = asked.to_generate("me")
    assert (wanted.temperature, wanted.max_tokens, wanted.owner) == (0, 4, "me")
    assert wanted.params["max_tokens"] == "max_output_tokens"
    with pytest.raises(InvalidField, match="session_id"):
        read(TurnBody, input="hi", session_id=7)  # the path says it


def test_a_stored_message_on_the_wire() -> None:
    fields = {"id": "msg_1", "parent": None, "created_at": 1, "line_tokens": 2, "siblings": []}
    message = SessionMessage(**fields, **content_of({"role": "assistant", "content": None}))
    written = orjson.loads(msgspec.json.encode(message))
    assert written == fields | {"object": "session.message", "role": "assistant", "content": ""}
    parts = [{"type": "text", "text": "hi"}]
    stored = {"role": "tool", "content": parts, "tool_call_id": "c", "name": None}
    kept = content_of(stored)
    assert kept["tool_call_id"] == "c" and "name" not in kept
    assert [(part.type, part.text) for part in kept["content"]] == [("text", "hi")]


def test_values_in_the_url() -> None:
    assert whole_number("20", "limit", 1, 100) == 20
    for text in ("0", "101", "-1", "1.5", "", "x", "9" * 5000, "٣", "+1", " 1"):
        with pytest.raises(InvalidField, match="limit is") as caught:
            whole_number(text, "limit", 1, 100)
        assert caught.value.param == "limit"
    assert (truth("true", "tree"), truth("false", "tree")) == (True, False)
    with pytest.raises(InvalidField, match="tree is"):
        truth("1", "tree")
