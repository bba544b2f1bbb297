"""/v1/sessions over a fake engine: the tree, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yarl
from aiohttp.test_utils import TestClient
from pytest_aiohttp import AiohttpClient

from lmserve.server.app import build_app
from lmserve.settings import SessionSettings, Settings
from tests.server.talk import HELLO, HI, URL, Talk, begin, ids


@pytest.fixture
def settings(settings: Settings, tmp_path: Path) -> Settings:
    return replace(settings, sessions=SessionSettings(data_dir=str(tmp_path)))


@pytest.fixture
async def talk(client: TestClient) -> Talk:
    return await begin(client, id="talk")


async def test_a_new_session(client: TestClient) -> None:
    response = await client.post(URL, json={"title": "Capitals"})
    session = await response.json()
    assert response.headers["X-Session-Id"] == session["id"]
    assert list(session) == [
        "id",
        "object",
        "title",
        "created_at",
        "used_at",
        "head",
        "num_messages",
        "num_tokens",
        "running",
    ]
    assert session["id"].startswith("sess_")
    assert (session["object"], session["title"]) == ("session", "Capitals")
    assert (session["head"], session["num_messages"], session["num_tokens"]) == (None, 0, 0)
    assert isinstance(session["created_at"], int) and session["used_at"] >= session["created_at"]
    assert await Talk(client, session["id"]).get() == session


async def test_one_with_an_id_and_messages(client: TestClient, fake: Any) -> None:
    talk = await begin(client, id="mine", messages=[HI, HELLO])
    listed = await talk.get("/messages")
    one, two = listed["data"]
    assert (listed["object"], listed["has_more"]) == ("list", False)
    assert (listed["first_id"], listed["last_id"]) == (one["id"], two["id"])
    assert (one["parent"], two["parent"]) == (None, one["id"])
    assert (one["role"], one["content"], one["object"]) == ("user", "hi", "session.message")
    assert one["siblings"] == [one["id"]]
    session = await talk.get()
    assert (session["id"], session["head"], session["num_messages"]) == ("mine", two["id"], 2)
    again = await client.post(URL, json={"id": "mine"})
    assert again.status == 409
    assert (await again.json())["error"]["code"] == "session_exists"
    assert fake.submits == []


async def test_the_list_goes_on_from_page_to_page(client: TestClient) -> None:
    talks = [await begin(client, id=f"s{number}") for number in range(5)]
    await talks[0].post("/messages", {"messages": [HI]})
    first = await (await client.get(URL, params={"limit": 2})).json()
    assert ids(first) == ["s0", "s4"]
    assert (first["object"], first["has_more"]) == ("list", True)
    assert (first["first_id"], first["last_id"]) == ("s0", "s4")
    rest = await (await client.get(URL, params={"after": first["last_id"]})).json()
    assert (ids(rest), rest["has_more"]) == (["s3", "s2", "s1"], False)
    last = await (await client.get(URL, params={"after": "s1", "limit": 100})).json()
    assert last == {
        "object": "list",
        "data": [],
        "first_id": None,
        "last_id": None,
        "has_more": False,
    }


async def test_renaming(talk: Talk) -> None:
    assert (await talk.post("", {"title": "One"}))["title"] == "One"
    assert (await talk.post("", {"title": None}))["title"] == "One"
    assert (await talk.post("", {}))["title"] == "One"
    assert (await talk.post("", {"title": ""}))["title"] is None


async def test_deleting(talk: Talk, fake: Any) -> None:
    assert await talk.delete() == {"id": "talk", "object": "session.deleted", "deleted": True}
    assert (await talk.get(status=404))["error"]["code"] == "session_not_found"
    await talk.delete(status=404)
    await begin(talk.client, id="talk")
    assert await talk.line() == []


async def test_rolling_back_and_switching(talk: Talk, fake: Any) -> None:
    fake.will_say("A").will_say("B").will_say("C")
    first = await talk.turn(input="1")
    second = await talk.turn(input="2")
    assert (await talk.post("", {"head": first["message_id"]}))["head"] == first["message_id"]
    assert await talk.line() == ["1", "A"]
    await talk.turn(input="3")
    assert await talk.line() == ["1", "A", "3", "C"]
    assert (await talk.post("", {"head": second["message_id"], "title": "x"}))["title"] == "x"
    assert await talk.line() == ["1", "A", "2", "B"]
    for root in ("root", None):
        assert (await talk.post("", {"head": root}))["head"] is None
        assert await talk.line() == []
    assert (await talk.get())["num_messages"] == 6


async def test_adding_messages_without_an_answer(talk: Talk, fake: Any) -> None:
    added = await talk.post("/messages", {"messages": [HI, HELLO]})
    assert [message["role"] for message in added["data"]] == ["user", "assistant"]
    assert added["first_id"] == added["data"][0]["id"]
    other = await talk.post("/messages", {"messages": [HELLO], "after": added["first_id"]})
    assert other["data"][0]["siblings"] == [added["last_id"], other["first_id"]]
    assert fake.submits == []
    fake.will_say("good")
    await talk.turn(input="yo")
    assert await talk.line() == ["hi", "Hello", "yo", "good"]


async def test_adding_an_answer_that_only_calls(talk: Talk) -> None:
    """It has no content: null, or left out."""
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    for answer in ({"content": None}, {}):
        message = {"role": "assistant", "tool_calls": [call], **answer}
        added = await talk.post("/messages", {"messages": [HI, message]})
        assert [message["role"] for message in added["data"]] == ["user", "assistant"]


async def test_an_answer_tells_how_it_was_made(talk: Talk, fake: Any) -> None:
    fake.will_say("Hello").will_say("A long", " story", finish="length")
    await talk.turn(input="hi")
    response = await talk.turn(input="on")
    for query in ("", "?tree=true"):
        _, whole, _, cut = (await talk.get(f"/messages{query}"))["data"]
        assert "status" not in whole and cut["status"] == "incomplete"
        assert (whole["response"]["status"], whole["response"]["error"]) == ("completed", None)
        told = {name: response[name] for name in ("id", "status", "incomplete_details", "usage")}
        assert cut["response"] == told | {"error": None}


async def test_forking(talk: Talk, fake: Any) -> None:
    fake.will_say("A").will_say("B").will_say("C")
    first = await talk.turn(input="1")
    await talk.turn(input="2")
    forked = await talk.post("/fork", {"at": first["message_id"], "id": "other", "title": "Other"})
    assert (forked["id"], forked["title"], forked["num_messages"]) == ("other", "Other", 2)
    other = Talk(talk.client, "other")
    await other.turn(input="3")
    assert await other.line() == ["1", "A", "3", "C"]
    assert await talk.line() == ["1", "A", "2", "B"]
    whole = await talk.post("/fork", {})
    assert await Talk(talk.client, whole["id"]).line() == ["1", "A", "2", "B"]
    assert (await talk.post("/fork", {"id": "other"}, 409))["error"]["code"] == "session_exists"
    await talk.delete()
    assert await other.line() == ["1", "A", "3", "C"]


async def test_a_fork_tells_the_new_sessions_id(talk: Talk) -> None:
    response = await talk.client.post(f"{talk.url}/fork", json={})
    assert response.headers["X-Session-Id"] == (await response.json())["id"] != "talk"


async def test_export_and_import(talk: Talk, fake: Any) -> None:
    fake.will_say("A").will_say("B")
    first = await talk.turn(input="1")
    await talk.turn(regenerate=first["message_id"])
    await talk.post("", {"title": "Kept"})
    exported = await talk.get("/export")
    response = await talk.client.post(f"{URL}/import", json={"session": exported, "id": "back"})
    session = await response.json()
    assert (response.status, session["id"], session["title"]) == (200, "back", "Kept")
    back = Talk(talk.client, "back")
    assert await back.line() == ["1", "B"]
    tree = await back.get("/messages?tree=true")
    assert sorted(message["content"] for message in tree["data"]) == ["1", "A", "B"]
    twin = await back.get("/export")
    assert len(twin["messages"]) == len(exported["messages"]) == 3
    for one, two in zip(twin["messages"], exported["messages"], strict=True):
        assert (one["content"], one["created"]) == (two["content"], two["created"])
    again = await talk.client.post(f"{URL}/import", json={"session": exported, "id": "back"})
    assert again.status == 409
    new = await talk.client.post(f"{URL}/import", json={"session": exported})
    assert (await new.json())["id"].startswith("sess_")


async def test_a_tree_of_many_siblings_is_no_longer_for_it(client: TestClient) -> None:
    sizes = []
    for num in (50, 500):
        roots = [HI | {"id": id} for id in range(num)]
        exported = {"format": "lmserve.session", "version": 1, "messages": roots}
        body = {"session": exported, "id": f"wide{num}"}
        assert (await client.post(f"{URL}/import", json=body)).status == 200
        listed = await client.get(f"{URL}/wide{num}/messages?tree=true")
        sizes.append(len(await listed.read()) / num)
    assert sizes[1] < sizes[0] + 10


async def test_many_messages(client: TestClient) -> None:
    messages = [{"role": "user", "content": str(number)} for number in range(300)]
    talk = await begin(client, messages=messages)
    texts = [message["content"] for message in messages]
    assert await talk.line() == texts
    back = await client.post(f"{URL}/import", json={"session": await talk.get("/export")})
    assert await Talk(client, (await back.json())["id"]).line() == texts


async def test_shared_with_the_interactive_route(client: TestClient, fake: Any) -> None:
    fake.will_say("A").will_say("B").will_say("C")
    body = {"prompt": "1", "session_id": 7, "interactive_mode": True}
    await client.post("/v1/chat/interactive", json=body)
    talk = Talk(client, "7")
    assert await talk.line() == ["1", "A"]
    await talk.turn(input="2")
    answer = await (await client.post("/v1/chat/interactive", json=body | {"prompt": "3"})).json()
    assert answer["history_tokens"] > 0
    assert await talk.line() == ["1", "A", "2", "B", "3", "C"]


# --- what is refused --------------------------------------------------------------------------


def exported(message: dict[str, Any], **fields: Any) -> dict[str, Any]:
    messages = [{"id": 1} | message | fields]
    return {"format": "lmserve.session", "version": 1, "messages": messages}


LOST = {"messages": [HI], "after": "msg_999999"}
NOBODY = [  # session_id is what the path calls it
    ("GET", "/nobody", None),
    ("GET", "/import", None),
    ("GET", "/a%20b", None),
    ("GET", "/" + "x" * 65, None),
    ("GET", "/nobody/messages", None),
    ("GET", "/nobody/messages?tree=true", None),
    ("GET", "/nobody/export", None),
    ("DELETE", "/nobody", None),
    ("POST", "/nobody", {"title": "x"}),
    ("POST", "/nobody/messages", {"messages": [HI]}),
    ("POST", "/nobody/fork", {}),
    ("POST", "/nobody/cancel", None),
    ("POST", "/nobody/turns", {"input": "hi"}),
    ("POST", "/nobody/turns", {"edit": "msg_1", "input": "a"}),
    ("POST", "/nobody/turns", {"regenerate": "msg_1"}),
]
NO_MESSAGE = [
    ("POST", "/talk", {"head": "msg_999999"}, "head"),
    ("POST", "/talk", {"head": "x"}, "head"),
    ("POST", "/talk", {"head": ""}, "head"),
    ("GET", "/talk/messages?at=msg_999999", None, "at"),
    ("GET", "/talk/messages?at=root", None, "at"),
    ("POST", "/talk/messages", LOST, "after"),
    ("POST", "/talk/fork", {"at": "msg_999999"}, "at"),
    ("POST", "/talk/turns", {"input": "a", "after": "msg_999999"}, "after"),
    ("POST", "/talk/turns", {"input": "a", "edit": "msg_999999"}, "edit"),
    ("POST", "/talk/turns", {"input": "a", "edit": "root"}, "edit"),
    ("POST", "/talk/turns", {"regenerate": "msg_999999"}, "regenerate"),
]
INVALID = [
    ("GET", "?limit=0", None, "limit"),
    ("GET", "?limit=101", None, "limit"),
    ("GET", "?limit=x", None, "limit"),
    ("GET", "/talk/messages?tree=1", None, "tree"),
    ("GET", "/talk/messages?tree=true&at=msg_1", None, "at"),
    ("POST", "", {"id": "a b"}, "id"),
    ("POST", "", {"id": "import"}, "id"),
    ("POST", "", {"id": 7}, "id"),
    ("POST", "", {"title": 7}, "title"),
    ("POST", "", {"messages": [{"role": "me"}]}, "messages[0].role"),
    ("POST", "", {"messages": [{"role": "user"}]}, "messages[0].content"),
    ("POST", "", {"messages": "hi"}, "messages"),
    ("POST", "/talk", {"head": 1}, "head"),
    ("POST", "/talk/messages", {"messages": []}, "messages"),
    ("POST", "/talk/messages", {}, "messages"),
    ("POST", "/talk/fork", {"id": "a/b"}, "id"),
    ("POST", "/talk/turns", {}, "input"),
    ("POST", "/talk/turns", {"input": ""}, "input"),
    ("POST", "/talk/turns", {"input": 7}, "input"),
    ("POST", "/talk/turns", {"input": [{"role": "user"}]}, "input[0].content"),
    ("POST", "/talk/turns", {"input": "a", "regenerate": "msg_1"}, "regenerate"),
    ("POST", "/talk/turns", {"input": "a", "temperature": 9}, "temperature"),
    ("POST", "/talk/turns", {"input": "a", "max_tokens": 0}, "max_tokens"),
    ("POST", "/talk/turns", {"input": "a", "stream": "yes"}, "stream"),
    ("POST", "/import", {}, "session"),
    ("POST", "/import", {"session": 7}, "session"),
    ("POST", "/import", {"session": {}}, "session.format"),
    ("POST", "/import", {"session": exported(HI, id=None)}, "session.messages[0].id"),
    ("POST", "/import", {"session": exported(HI, parent=2)}, "session.messages[0].parent"),
    ("POST", "/import", {"session": exported(HI, role="me")}, "session.messages[0].role"),
    ("POST", "/import", {"session": exported(HI) | {"head": 7}}, "session.head"),
    ("POST", "/import", {"session": exported(HI) | {"format": "x"}}, "session.format"),
    ("POST", "/import", {"session": exported(HI) | {"version": 2}}, "session.version"),
    ("POST", "/import", {"session": exported(HI), "id": "a b"}, "id"),
]
REFUSED = [
    *((*call, 404, "session_not_found", "session_id") for call in NOBODY),
    *((*call, 404, "message_not_found", param) for *call, param in NO_MESSAGE),
    *((*call, 400, "invalid_value", param) for *call, param in INVALID),
    ("GET", "?after=nobody", None, 404, "session_not_found", "after"),
    ("POST", "/talk/turns", {"input": "a", "model": "none"}, 404, "model_not_found", "model"),
    ("POST", "/talk/turns", {"input": "x" * 10_000}, 400, "context_length_exceeded", "input"),
    (
        "POST",
        "/talk/messages",
        {"messages": [{"role": "user", "content": "x" * 200_000}]},
        400,
        "context_length_exceeded",
        "messages",
    ),
    ("POST", "", [], 400, None, None),
]


async def test_what_is_wrong_is_told(talk: Talk, fake: Any) -> None:
    """One call after the other: none changes anything."""
    before = await talk.get()
    for method, path, body, status, code, param in REFUSED:
        url = yarl.URL(URL + path, encoded=True)
        async with talk.client.request(method, url, json=body) as response:
            told = await response.json()
            case = (method, path, str(body)[:80], told)
            assert response.status == status, case
        assert (told["error"]["code"], told["param"]) == (code, param), case
        assert (told["object"], told["code"]) == ("error", status), case
        assert len(told["message"]) < 500 and "\n" not in told["message"], case
    assert fake.submits == []
    assert await talk.get() == before


async def test_only_answers_are_made_again(talk: Talk, fake: Any) -> None:
    fake.will_say("A")
    turn = await talk.turn(input="hi")
    told = await talk.turn(status=400, regenerate=turn["input_message_ids"][0])
    assert told["param"] == "regenerate" and "no answer" in told["message"]


async def test_messages_of_another_session_are_not_there(client: TestClient) -> None:
    one = await begin(client, messages=[HI, HELLO])
    two = await begin(client)
    id = (await one.get())["head"]
    for path, body, param in (
        ("/turns", {"input": "x", "after": id}, "after"),
        ("/turns", {"input": "x", "edit": id}, "edit"),
        ("/turns", {"regenerate": id}, "regenerate"),
        ("/fork", {"at": id}, "at"),
        ("", {"head": id}, "head"),
        ("/messages", {"messages": [HI], "after": id}, "after"),
    ):
        told = await two.post(path, body, 404)
        assert (told["error"]["code"], told["param"]) == ("message_not_found", param)
    await two.get(f"/messages?at={id}", 404)
    assert (await two.get())["num_messages"] == 0


async def test_somebody_elses_session_is_not_there(
    aiohttp_client: AiohttpClient, settings: Settings, fake: Any
) -> None:
    settings = replace(settings, server=replace(settings.server, api_keys=("one", "two")))
    client = await aiohttp_client(build_app(settings, fake))
    one, two = ({"Authorization": f"Bearer {key}"} for key in ("one", "two"))
    assert (await client.get(URL)).status == 401
    mine = await begin(client, one, id="mine", messages=[HI])
    theirs = Talk(client, "mine", two)
    head = (await mine.get())["head"]
    told = [
        await theirs.get(status=404),
        await theirs.get("/messages", 404),
        await theirs.get("/export", 404),
        await theirs.post("", {"title": "x"}, 404),
        await theirs.post("/messages", {"messages": [HI]}, 404),
        await theirs.post("/fork", {}, 404),
        await theirs.post("/cancel", None, 404),
        await theirs.turn(404, input="hi", after=head),
        await theirs.delete(404),
    ]
    nobody = await Talk(client, "nobody", two).get(status=404)
    assert {each["error"]["code"] for each in told} == {"session_not_found"}
    assert told[0]["message"].replace("mine", "nobody") == nobody["message"]
    assert ids(await (await client.get(URL, headers=two)).json()) == []
    assert ids(await (await client.get(URL, headers=one)).json()) == ["mine"]
    await begin(client, two, id="mine")
    assert await mine.line() == ["hi"]


async def test_an_oversized_body(
    aiohttp_client: AiohttpClient, settings: Settings, fake: Any
) -> None:
    settings = replace(settings, server=replace(settings.server, max_body_bytes=1000))
    client = await aiohttp_client(build_app(settings, fake))
    talk = await begin(client)
    for path in ("/turns", "/messages", "/fork", ""):
        await talk.post(path, {"input": "x" * 2000}, 413)
    assert (await client.post(f"{URL}/import", data=b"{" + b" " * 2000)).status == 413


async def test_a_forgotten_session_is_not_there_and_says_why(
    aiohttp_client: AiohttpClient, settings: Settings, fake: Any
) -> None:
    few = replace(settings.sessions, max_sessions=1)
    client = await aiohttp_client(build_app(replace(settings, sessions=few), fake))
    one = await begin(client, messages=[HI])
    await begin(client, messages=[HI])
    for told in (await one.get(status=404), await one.turn(404, input="hi")):
        assert told["error"]["code"] == "session_not_found"
        assert "forgotten" in told["message"]
