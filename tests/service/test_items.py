"""What answers hold: put together from parts, stored, shown as a chat has it; and whether calls
have their outputs."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmserve.errors import InvalidField
from lmserve.service.items import (
    Call,
    Item,
    Items,
    as_chat,
    as_parts,
    chat_items,
    items_of,
    pack_parts,
    to_message,
    told_apart,
    unpack_parts,
)
from lmserve.service.sessions.outputs import check_outputs, pending
from lmserve.types import CallArguments, CallBegun, Content, Part, Reasoning

PARTS: list[Part] = [
    Reasoning("H"),
    Reasoning("m"),
    Content("Let me "),
    Content("see."),
    CallBegun(0, "call_1", "f"),
    CallArguments(0, '{"a"'),
    CallArguments(0, ": 1}"),
    CallBegun(1, "call_2", "g"),
]
ITEMS = (Reasoning("Hm"), Content("Let me see."), Call("call_1", "f", '{"a": 1}'))


def test_parts_become_items() -> None:
    items = Items()
    assert [items.add(part) for part in PARTS] == [
        True, False, True, False, True, False, False, True,
    ]  # fmt: skip
    assert items.calls == ["call_1", "call_2"]
    assert items.whole(cut=False) == (*ITEMS, Call("call_2", "g", ""))
    assert items.whole(cut=True) == (*ITEMS, Call("call_2", "g", "", cut=True))
    assert Items(PARTS[:-1]).whole(cut=True) == ITEMS  # that call was whole


PIECES = st.text("ab{}\u00e9", max_size=3)
SOME_ITEMS = st.lists(
    st.one_of(PIECES.map(Content), PIECES.map(Reasoning), st.builds(Call, PIECES, PIECES, PIECES)),
    max_size=5,
)


@given(SOME_ITEMS)
def test_items_are_what_they_were_once_stored(items: list[Item]) -> None:
    whole = Items(as_parts(items)).whole(cut=False)
    assert items_of(to_message("raw", whole)) == whole
    packed = pack_parts(as_parts(whole))
    assert packed is not None
    assert Items(unpack_parts(packed)).whole(cut=False) == whole


def test_a_plain_text_is_stored_as_ever() -> None:
    items = told_apart("hi", (Content("hi"),))
    assert items is None and told_apart("", ()) is None
    assert told_apart("<think>", ()) == ()
    assert to_message("hi", items) == {"role": "assistant", "content": "hi"}
    assert as_chat({"role": "user", "content": "hi"}) == {"role": "user", "content": "hi"}


def test_a_chat_has_what_it_knows() -> None:
    cut = Call("call_2", "g", "{", cut=True)
    assert items_of(to_message("raw", (*ITEMS, cut))) == (*ITEMS, cut)
    chat = as_chat(to_message("raw", (*ITEMS, cut)))
    assert chat == {
        "role": "assistant",
        "content": "Let me see.",
        "reasoning_content": "Hm",
        "tool_calls": [
            {"id": "call_1", "type": "function",
             "function": {"name": "f", "arguments": '{"a": 1}'}}
        ],
    }  # fmt: skip
    assert tuple(chat_items(chat)) == ITEMS
    assert as_chat(to_message("raw", (cut,)))["content"] == ""
    assert as_chat(to_message("raw", ITEMS[2:]))["content"] is None


def called(*ids: str) -> dict[str, Any]:
    return as_chat(to_message("raw", [Call(id, f"f_{id}", "{}") for id in ids]))


def gave(id: str) -> dict[str, Any]:
    return {"role": "tool", "content": "1", "tool_call_id": id}


HI = {"role": "user", "content": "hi"}


def test_calls_wait_for_their_outputs() -> None:
    assert pending([HI]) == {}
    assert pending([HI, called("a", "b")]) == {"a": "f_a", "b": "f_b"}
    assert pending([HI, called("a", "b"), gave("a")]) == {"b": "f_b"}
    assert pending([called("a"), HI]) == {}  # a line that somebody wrote


@pytest.mark.parametrize(
    ("line", "new", "named"),
    [
        ([HI, called("a")], [HI], "a"),
        ([HI, called("a")], [], "a"),
        ([HI, called("a", "b")], [gave("b")], "a"),
        ([HI, called("a", "b")], [gave("b"), HI, gave("a")], "a"),
        ([HI], [gave("x")], "x"),
        ([HI, called("a")], [gave("x")], "x"),
        ([HI, called("a")], [gave("a"), gave("a")], "a"),
        ([], [called("a"), HI], "a"),
    ],
)
def test_what_is_missing_is_named(line: list[Any], new: list[Any], named: str) -> None:
    with pytest.raises(InvalidField, match=rf"call {named}:|call_id {named}:") as refused:
        check_outputs(line, new)
    assert refused.value.param == "messages"


def test_outputs_may_come_in_any_order() -> None:
    check_outputs([HI, called("a", "b")], [gave("b"), gave("a"), HI])
    check_outputs([HI, called("a", "b"), gave("b")], [gave("a")])
    check_outputs([], [HI, called("a"), gave("a"), called("b"), gave("b")])
