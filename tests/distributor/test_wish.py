"""What is read from a request, and only for the choice of its node."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmserve.distributor.wish import (
    INTERACTIVE,
    RESPONSES,
    SESSIONS,
    Wish,
    session_key,
    wish_of,
)


def wish(body: Any, path: str = "/v1/chat/completions", key: str = "") -> Wish:
    return wish_of(path, None, key, orjson.dumps(body))


def test_the_model() -> None:
    assert wish({"model": "m"}).model == "m"
    assert wish({"model": None}).model is None
    assert wish({"model": 7}).model is None  # the node refuses it
    assert wish_of("/v1/models/a/b%2F", None, "", b"").model == "a/b%2F"  # decoded before
    assert wish_of("/v1/realtime", "m", "", b"").model == "m"


@pytest.mark.parametrize("name", ["\udcff", "\ud800", "x" * 60_000])
def test_a_request_s_name_may_be_anything_and_is_kept_short(name: str) -> None:
    """As aiohttp gives a header that is no UTF-8."""
    first, second = (
        wish_of("/v1/completions", None, key, b"{}", request_key=name).again for key in ("a", "b")
    )
    assert first and second and first != second
    assert len(first) < 100
    assert session_key(name, 1).endswith("/1")


@given(st.binary(max_size=60))
def test_no_body_is_too_odd(body: bytes) -> None:
    for path in (INTERACTIVE, "/v1/completions"):
        assert wish_of(path, None, "", body).session is None or b"session_id" in body


def test_depth_is_no_trap() -> None:
    assert wish_of(INTERACTIVE, None, "", b'{"model":' + b"[" * 200_000) == Wish()


def test_sessions_are_those_of_the_interactive_route() -> None:
    one = wish({"session_id": 1, "prompt": "hi"}, INTERACTIVE)
    assert one.session == session_key("", 1)
    assert one.session_id == 1
    assert wish({"session_id": 1, "prompt": "hi"}).session is None
    for absent in (-1, None, "1", True, 1.0):
        assert wish({"session_id": absent, "prompt": "hi"}, INTERACTIVE).session is None


def test_two_keys_may_use_the_same_id() -> None:
    ids = {wish({"session_id": 1}, INTERACTIVE, key).session for key in ("", "a", "b")}
    assert len(ids) == 3
    assert all("a" != each and "b" != each for each in ids)


@pytest.mark.parametrize(
    ("fields", "ends", "only"),
    [
        ({"prompt": "hi", "interactive_mode": True}, False, False),
        ({"prompt": "hi", "interactive_mode": False}, True, False),
        ({"prompt": "hi"}, True, False),
        ({"prompt": "", "request_output_len": 0}, True, True),
        ({"prompt": "", "request_output_len": 0, "interactive_mode": True}, False, False),
        ({"prompt": "", "cancel": True}, False, False),
        ({"prompt": "", "request_output_len": 0, "cancel": True}, False, False),
    ],
)
def test_how_a_session_ends(fields: dict[str, Any], ends: bool, only: bool) -> None:
    found = wish({"session_id": 1} | fields, INTERACTIVE)
    assert (found.ends_session, found.only_ends) == (ends, only)


def kept(path: str, body: Any = None, method: str = "POST") -> Wish:
    return wish_of(SESSIONS + path, None, "k", orjson.dumps(body or {}), method=method)


@pytest.mark.parametrize("path", ["", "/messages", "/turns", "/fork", "/cancel", "/export"])
def test_a_session_s_routes_go_to_its_node(path: str) -> None:
    found = kept(f"/sess_1{path}")
    assert (found.session, found.session_id) == (session_key("k", "sess_1"), "sess_1")
    assert found.opens_for == ("k" if path == "/fork" else None)
    assert not found.ends_session


def test_both_kinds_of_sessions_share_their_ids() -> None:
    assert kept("/7/turns").session == wish({"session_id": 7}, INTERACTIVE, "k").session


def test_new_sessions_go_by_their_id_or_get_one() -> None:
    for path in ("", "/import"):
        assert kept(path, {"id": "mine"}).session == session_key("k", "mine")
        for absent in ({}, {"id": None}, {"id": ""}, {"id": 7}):
            found = kept(path, absent)
            assert (found.session, found.opens_for) == (None, "k")
    assert kept("", method="GET") == Wish()  # a list: some node's
    assert kept("/") == Wish()


def test_deleting_ends_a_session() -> None:
    assert kept("/mine", method="DELETE").ends_session
    assert not kept("/mine", method="GET").ends_session


def test_a_turn_may_name_a_model() -> None:
    assert kept("/mine/turns", {"model": "m", "input": "hi"}).model == "m"


def turns(*texts: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text} for text in texts]}


def test_a_beginning_must_be_long_enough_to_matter() -> None:
    assert wish(turns("hi")).prefixes == ()
    assert len(wish(turns("x" * 300)).prefixes) == 1
    assert len(wish(turns("x" * 5000)).prefixes) == 3
    assert len(wish({"prompt": "x" * 300}).prefixes) == 1


def test_a_conversation_keeps_its_beginning_as_it_grows() -> None:
    first = wish(turns("x" * 300)).prefixes
    later = wish(turns("x" * 300, "y" * 900, "z")).prefixes
    assert len(later) == 2
    assert later[-1:] == first
    assert wish(turns("y" + "x" * 300)).prefixes != first
    assert wish(turns("x" * 300) | {"model": "n"}).prefixes != first


def test_a_system_prompt_is_a_beginning_too():
    first = wish({"system": "x" * 300} | turns("hi")).prefixes
    assert len(first) == 1
    assert wish({"system": "x" * 300} | turns("hi, you")).prefixes == first
    assert wish({"system": "y" * 300} | turns("hi")).prefixes != first


# --- what ids say of themselves ----------------------------------------------------------------

NODE = "0123abcd"
RESPONSE, SESSION = f"resp_{NODE}{'0' * 24}", f"sess_{NODE}{'1' * 24}"


def response(key: str | None = None, **body: Any) -> Wish:
    return wish_of(RESPONSES, None, "k", orjson.dumps(body), request_key=key)


@pytest.mark.parametrize(
    "fields",
    [
        {"previous_response_id": RESPONSE},
        {"continue": RESPONSE},
        {"regenerate": RESPONSE, "conversation": "mine"},
    ],
)
def test_what_follows_a_response_is_for_its_node(fields: dict[str, Any]) -> None:
    found = response(**fields)
    assert (found.session, found.kept_by) == (session_key("k", RESPONSE), NODE)


def test_a_turn_is_for_the_node_of_its_conversation() -> None:
    for named in (SESSION, {"id": SESSION}):
        assert response(conversation=named).kept_by == NODE
        assert response(conversation=named).session == kept(f"/{SESSION}/turns").session
    for named in ("mine", {"id": "mine"}):
        found = response(conversation=named)
        assert (found.session, found.kept_by) == (session_key("k", "mine"), None)
    for odd in (None, 7, {}, {"id": 7}, [], ""):
        assert response(conversation=odd).session is None


def test_ids_that_no_node_gave_are_for_any() -> None:
    for odd in (None, 7, "resp_none", RESPONSE[:-1], RESPONSE.upper(), f"x{RESPONSE}"):
        assert response(previous_response_id=odd).session is None


def test_a_batch_is_for_the_node_of_its_file() -> None:
    body = orjson.dumps({"input_file_id": f"file-{NODE}{'2' * 24}"})
    assert wish_of("/v1/batches", None, "k", body).kept_by == NODE
    for other in (b"{}", b'{"input_file_id": 7}', b'{"input_file_id": "file-none"}'):
        assert wish_of("/v1/batches", None, "k", other) == Wish()


@pytest.mark.parametrize("path", ["", "/cancel", "/steer", "/input_items"])
def test_the_path_of_a_response(path: str) -> None:
    found = wish_of(f"{RESPONSES}/{RESPONSE}{path}", None, "k", b"")
    assert (found.session_id, found.kept_by) == (RESPONSE, NODE)
    assert wish_of(f"{RESPONSES}/resp_none{path}", None, "k", b"") == Wish()
    assert wish_of(f"/v1/files/file-{NODE}{'2' * 24}/content", None, "k", b"").kept_by == NODE
    assert wish_of(f"/v1/batches/batch_{NODE}{'2' * 24}/cancel", None, "k", b"").kept_by == NODE
    stream = f"strm_{NODE}{'2' * 24}"
    assert wish_of(f"/v1/streams/{stream}", None, "k", b"").kept_by == NODE


def test_a_request_with_a_name() -> None:
    one = response("n", input="hi").again
    assert one is not None
    assert one != wish_of(RESPONSES, None, "other", b"{}", request_key="n").again
    assert response("n", previous_response_id=RESPONSE).again is None  # it has its node
    assert wish_of("/v1/chat/completions", None, "k", b"{}", request_key="n").again == one


def test_responses_that_begin_alike() -> None:
    long = response(instructions="x" * 300, input="hi").prefixes
    assert len(long) == 1
    assert response(instructions="x" * 300, input="hi, you").prefixes == long
    assert response(instructions="y" * 300, input="hi").prefixes != long


def test_a_deleted_draft_ends_no_session() -> None:
    assert not kept("/mine/draft", method="DELETE").ends_session
