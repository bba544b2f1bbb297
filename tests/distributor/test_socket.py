"""One WebSocket, two nodes behind it."""

from __future__ import annotations

import asyncio
import base64
import threading
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import ClientSession
from openai import AsyncOpenAI

from lmserve.distributor.app import running_proxy
from lmserve.distributor.keys import NODES, PROXY, SOCKETS
from lmserve.distributor.settings import ProxySettings
from lmserve.distributor.socket import connection
from lmserve.distributor.socket.connection import MAX_HELD
from lmserve.distributor.socket.events import event_of
from lmserve.edge.socket import authentication
from lmserve.ids import node_of
from tests.distributor.nodes import listen, whole
from tests.server.sockets import PATH, Socket

ENDS = ("response.completed", "response.incomplete", "response.failed")
POLICY = aiohttp.WSCloseCode.POLICY_VIOLATION


@asynccontextmanager
async def connected(proxy: Any, **options: Any) -> AsyncIterator[Socket]:
    async with proxy.session.ws_connect(PATH, **options) as ws:
        yield Socket(ws)


@pytest.fixture
async def two(make_node: Any, make_proxy: Any) -> tuple[Any, list[Any]]:
    nodes = [await make_node(), await make_node()]
    proxy = await make_proxy(*(node.url for node in nodes))
    return proxy, nodes


async def on_each(proxy: Any, nodes: list[Any]) -> list[Any]:
    """A session of each node's own naming."""
    sessions = []
    for node in nodes:
        async with proxy.session.post(node.url + "/v1/sessions", json={}) as response:
            sessions.append(await response.json())
    return [session["id"] for session in sessions]


async def finished(socket: Socket, num: int = 1) -> list[Any]:
    """All events, until so many answers have ended."""
    events: list[Any] = []
    while sum(event["type"] in ENDS for event in events) < num:
        events += await socket.until(*ENDS)
    return events


def said(events: list[Any], lane: str | None = None) -> str:
    mine = [event for event in events if event.get("stream_id") == lane]
    return "".join(e["delta"] for e in mine if e["type"] == "response.output_text.delta")


async def test_two_conversations_on_two_nodes(two: Any) -> None:
    proxy, nodes = two
    ids = await on_each(proxy, nodes)
    nodes[0].engine.will_say("A", "a").will_say("C")
    nodes[1].engine.will_say("B", "b").will_say("D")
    async with connected(proxy) as socket:
        for lane, id in zip("ab", ids, strict=True):
            await socket.send("response.create", stream_id=lane, conversation=id, input="hi")
        events = await finished(socket, 2)
        assert (said(events, "a"), said(events, "b")) == ("Aa", "Bb")
        last = {e["stream_id"]: e["response"]["id"] for e in events if e["type"] in ENDS}
        for lane in "ab":  # and on, by the answers alone, on the other lane
            other = "b" if lane == "a" else "a"
            await socket.send(
                "response.create", stream_id=lane, previous_response_id=last[other], input="more"
            )
        events = await finished(socket, 2)
        assert (said(events, "a"), said(events, "b")) == ("D", "C")
        for id in ids:
            assert (await socket.call("session.get", session=id))["num_messages"] == 4
    await proxy.until(lambda: not any(proxy.node(node.url).unfinished for node in nodes))


async def test_a_lane_answers_in_order_across_nodes(two: Any) -> None:
    proxy, nodes = two
    ids = await on_each(proxy, nodes)
    nodes[0].engine.will_hang("A")
    nodes[1].engine.will_say("B").will_say("C")
    async with connected(proxy) as socket:
        for id in (*ids, ids[1]):
            await socket.send("response.create", conversation=id, input="hi")
        await socket.until("response.output_text.delta")
        assert nodes[1].engine.submits == []
        await socket.send("session.cancel", session=ids[0])
        events = await finished(socket, 3)
    texts = [e["delta"] for e in events if e["type"] == "response.output_text.delta"]
    assert texts == ["B", "C"]


async def test_a_node_that_stops_ends_its_own_answers_and_no_others(two: Any) -> None:
    proxy, nodes = two
    ids = await on_each(proxy, nodes)
    nodes[0].engine.will_hang("A")
    nodes[1].engine.will_hang("B")
    async with connected(proxy) as socket:
        for lane, id in zip("ab", ids, strict=True):
            await socket.send("response.create", stream_id=lane, conversation=id, input="hi")
        events: list[Any] = []
        while len([e for e in events if e["type"] == "response.output_text.delta"]) < 2:
            events.append(await socket.receive())
        stopping = asyncio.create_task(nodes[0].stop())
        assert {e["stream_id"] for e in await finished(socket)} == {"a"}
        await stopping
        await socket.send("session.cancel", session=ids[1])
        ended = [e for e in await finished(socket) if e["type"] in ENDS]
        assert [event["stream_id"] for event in ended] == ["b"]


async def test_a_node_cut_off_in_mid_answer(two: Any) -> None:
    proxy, nodes = two
    ids = await on_each(proxy, nodes)
    nodes[0].engine.will_hang("A")
    nodes[1].engine.will_hang("B")
    async with connected(proxy) as socket:
        for lane, id in zip("ab", ids, strict=True):
            await socket.send("response.create", stream_id=lane, conversation=id, input="hi")
        events: list[Any] = []
        while len([e for e in events if e["type"] == "response.output_text.delta"]) < 2:
            events.append(await socket.receive())
        begun = {e["stream_id"]: e["response"]["id"] for e in events if "response" in e}
        proxy.node(nodes[0].url).cut()
        error = await socket.receive()
        assert (error["type"], error["stream_id"], error["status"]) == ("error", "a", 502)
        assert error["error"]["code"] == "node_lost"
        assert begun["a"] in error["error"]["message"]
        await proxy.until(lambda: proxy.node(nodes[0].url).alive)
        resume = {"response_id": begun["a"], "starting_after": -1, "stream_id": "again"}
        await socket.send("session.resume", **resume)
        again = await socket.until("response.output_text.delta")
        assert {e["stream_id"] for e in again[1:]} == {"again"}
        for id in ids:
            await socket.send("session.cancel", session=id)
        ended = [event["stream_id"] for event in await finished(socket, 2) if "stream_id" in event]
    assert {"again", "b"} <= set(ended)


async def test_resuming_and_steering(two: Any) -> None:
    proxy, nodes = two
    ids = await on_each(proxy, nodes)
    for node, id in zip(nodes, ids, strict=True):
        node.engine.will_hang("Hel").will_say("good")
        async with connected(proxy) as first:
            await first.send("response.create", conversation=id, input="hi")
            events = await first.until("response.output_text.delta")
        answer = events[0]["response"]["id"]
        async with connected(proxy) as socket:
            await socket.send(
                "session.resume", response_id=answer, starting_after=events[-1]["sequence_number"]
            )
            await socket.until("session.resume.done")
            await socket.send("response.steer", previous_response_id=answer, input="shorter")
            steered = await finished(socket, 2)
        assert "response.steer.accepted" in [event["type"] for event in steered]
        assert said(steered) == "good"


async def test_sessions_by_names_of_their_clients(two: Any, make_proxy: Any) -> None:
    proxy, nodes = two
    names = [f"s{number}" for number in range(24)]
    async with connected(proxy) as socket:
        for name in names:
            await socket.call("session.create", id=name)
            forked = await socket.call("session.fork", session=name, id=f"fork-{name}")
            assert forked["id"] == f"fork-{name}"
        assert node_of((await socket.call("session.create"))["id"])
    async with connected(proxy) as socket:
        for name in names:
            for id in (name, f"fork-{name}"):
                assert (await socket.call("session.get", session=id))["id"] == id
            await socket.send("response.create", conversation=name, input="hi")
            await finished(socket)
    assert all(node.engine.submits for node in nodes), "both have some"
    again = await make_proxy(*(node.url for node in reversed(nodes)))
    async with connected(again) as socket:
        for name in names:
            assert (await socket.call("session.get", session=name))["num_messages"] == 2
            await socket.call("session.delete", session=name)
            told = await socket.error("session.get", session=name, event_id="e")
            assert (told["status"], told["event_id"]) == (404, "e")


async def test_what_is_asked_without_a_node(two: Any) -> None:
    proxy, nodes = two
    for node in nodes:
        await node.stop()
    async with connected(proxy) as socket:
        for _ in range(2):
            event = await socket.error("response.create", input="hi", stream_id="l", event_id="e")
            assert (event["status"], event["stream_id"], event["event_id"]) == (503, "l", "e")
            assert event["error"]["headers"]["Retry-After"]


async def test_a_node_that_is_gone_is_no_404(two: Any) -> None:
    proxy, nodes = two
    ids = await on_each(proxy, nodes)
    await nodes[0].stop()
    async with connected(proxy) as socket:
        event = await socket.error("session.get", session=ids[0])
        assert (event["status"], event["error"]["code"]) == (503, "session_unavailable")
        assert (await socket.call("session.get", session=ids[1]))["id"] == ids[1]
        await socket.send("response.create", input="hi")
        await finished(socket)


async def test_odd_events_are_told_by_a_node(two: Any) -> None:
    proxy, _ = two
    async with connected(proxy) as socket:
        for text in ("{", "[]", '{"type":7}', '{"type":"no"}', "{}", '{"type":"session.get"}'):
            await socket.raw(text)
            assert (await socket.receive())["status"] == 400
        await socket.ws.send_bytes(b"{}")
        assert (await socket.receive())["status"] == 400
        event = await socket.error("response.create", previous_response_id="resp_none", input="x")
        assert (event["status"], event["error"]["code"]) == (404, "previous_response_not_found")
        await socket.send("response.create", input="hi")
        await finished(socket)


async def test_a_frame_too_long(make_node: Any, make_proxy: Any) -> None:
    node = await make_node()
    proxy = await make_proxy(node.url, max_body_bytes=4096)
    async with connected(proxy) as socket:
        await socket.raw('{"type":"session.list","x":"' + "x" * 5000 + '"}')
        assert await socket.closed() == aiohttp.WSCloseCode.MESSAGE_TOO_BIG


async def test_the_distributor_stops(two: Any) -> None:
    proxy, nodes = two
    nodes[0].engine.will_hang("A")
    nodes[1].engine.will_hang("A")
    async with connected(proxy) as socket:
        await socket.send("response.create", input="hi")
        await socket.until("response.output_text.delta")
        closing = asyncio.create_task(proxy.app.shutdown())
        while (message := await socket.ws.receive(timeout=20)).type is aiohttp.WSMsgType.TEXT:
            pass
        assert socket.ws.close_code == aiohttp.WSCloseCode.GOING_AWAY, message
        await closing
    await proxy.until(lambda: len(proxy.app[SOCKETS]) == 0)


async def test_the_official_client(two: Any) -> None:
    proxy, nodes = two
    for node in nodes:
        node.engine.will_say("Hello").will_say("good").will_say("Hello").will_say("good")
    async with AsyncOpenAI(base_url=f"{proxy.url}/v1", api_key="none", max_retries=0) as api:
        first = await api.responses.create(model="mock", input="hi")
        async with api.responses.connect() as connection:
            previous = first.id
            for _ in range(2):
                await connection.response.create(
                    model="mock", previous_response_id=previous, input="and?"
                )
                async for event in connection:
                    if event.type == "response.completed":
                        break
                assert event.response.previous_response_id == previous
                previous = event.response.id
        assert node_of(previous) == node_of(first.id)
        third = await api.responses.create(model="mock", previous_response_id=previous, input="x")
        assert third.previous_response_id == previous


# --- who may ------------------------------------------------------------------------------


def named(key: str) -> list[str]:
    text = base64.urlsafe_b64encode(key.encode()).rstrip(b"=").decode()
    return ["lmserve", f"lmserve.key.{text}"]


@pytest.mark.parametrize("proxy_keys", [("k", "l"), ()])
async def test_keys_reach_the_nodes(make_node: Any, make_proxy: Any, proxy_keys: Any) -> None:
    node = await make_node(api_keys=("k", "l"))
    proxy = await make_proxy(api_keys=proxy_keys)
    headers = {"Authorization": "Bearer k"}
    body = {"url": node.url, "status": {"models": ["mock"]}}
    async with proxy.post("/nodes/add", json=body, headers=headers) as response:
        assert response.status == 200
    for options in (
        {"headers": {"Authorization": "Bearer l"}},
        {"headers": {"X-Api-Key": "l"}},
        {"protocols": named("l")},
    ):
        async with connected(proxy, **options) as socket:
            assert (await socket.call("session.list"))["data"] is not None
    async with connected(proxy) as socket:
        await socket.send("session.authenticate", api_key="l", event_id="e")
        assert await socket.receive() == {"type": "session.authenticated", "event_id": "e"}
        await socket.call("session.list")
        await socket.send("session.authenticate", api_key="l")
        assert await socket.receive() == {"type": "session.authenticated"}
    for first in (
        {"type": "session.authenticate", "api_key": "no"},
        {"type": "session.list"},
    ):
        async with connected(proxy) as socket:
            await socket.send(**first)
            assert (await socket.receive())["status"] == 401
            assert await socket.closed() == POLICY
    async with connected(proxy, protocols=named("no")) as socket:
        if not proxy_keys:
            await socket.send("session.list")
        assert (await socket.receive())["status"] == 401
        assert await socket.closed() == POLICY


async def test_a_key_must_come_in_time(
    make_node: Any, make_proxy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(authentication, "PATIENCE_S", 0.01)
    proxy = await make_proxy((await make_node(api_keys=("k",))).url, api_keys=("k",))
    async with connected(proxy) as socket:
        assert (await socket.receive())["status"] == 401
        assert await socket.closed() == POLICY
    for path, headers, status in (
        (PATH, {"Authorization": "Bearer no"}, 401),
        (PATH, {"Sec-WebSocket-Protocol": "tea"}, 400),
    ):
        with pytest.raises(aiohttp.WSServerHandshakeError) as raised:
            await proxy.session.ws_connect(path, headers=headers)
        assert raised.value.status == status
    async with proxy.get(PATH) as response:
        assert response.status == 401
    async with proxy.get(PATH, headers={"Authorization": "Bearer k"}) as response:
        assert response.status == 400


async def test_other_sites_pages(make_node: Any, make_proxy: Any) -> None:
    node = await make_node(allow_origins=("https://page.example",))
    proxy = await make_proxy(node.url)
    for origin in ("https://page.example", proxy.url):
        async with connected(proxy, headers={"Origin": origin}) as socket:
            await socket.call("session.list")
    with pytest.raises(aiohttp.WSServerHandshakeError) as raised:
        await proxy.session.ws_connect(PATH, headers={"Origin": "https://evil.example"})
    assert raised.value.status == 403


# --- nodes that do not take it, clients that take nothing -----------------------------------


@pytest.mark.parametrize("refusal", [whole(b"{}", "503 Not Now"), b""])
async def test_another_node_is_asked(make_node: Any, make_bare: Any, refusal: bytes) -> None:
    bare, node = await make_bare(refusal, "mock"), await make_node()
    settings = ProxySettings(nodes=(bare.url, node.url), health_interval_s=60.0)
    async with AsyncExitStack() as stack:
        listener = listen()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        app = await stack.enter_async_context(running_proxy(settings, listener))
        client = await stack.enter_async_context(ClientSession(url))
        app[NODES].get(node.url).unfinished = 1  # so that the other is asked first
        async with client.ws_connect(PATH) as ws:
            socket = Socket(ws)
            await socket.send("response.create", input="hi", max_output_tokens=2)
            await finished(socket)
        assert b"sec-websocket-key" in bare.heads[0].lower()


async def test_a_node_without_the_route(make_bare: Any, make_proxy: Any) -> None:
    node = await make_bare(whole(b"{}", "404 Not Found"))
    proxy = await make_proxy(node.url)
    async with connected(proxy) as socket:
        for event_id in ("1", "2"):
            told = await socket.error("response.create", input="hi", event_id=event_id)
            assert (told["event_id"], told["status"]) == (event_id, 500)
            assert "it says 404" in told["error"]["message"]


async def test_what_is_held_has_a_limit(two: Any, make_proxy: Any) -> None:
    _, nodes = two
    proxy = await make_proxy(*(node.url for node in nodes), max_held_bytes=1000)
    async with connected(proxy) as socket:
        told = await socket.error("session.list", event_id="x" * 1000)
        assert (told["status"], told["error"]["code"]) == (429, "overloaded")
        for _ in range(20):  # given back each time
            await socket.call("session.list", event_id="x" * 100)
    assert proxy.app[PROXY].bodies.held_bytes == 0


async def test_too_much_for_one_lane(two: Any) -> None:
    proxy, nodes = two
    ids = await on_each(proxy, nodes)
    nodes[0].engine.will_hang("A")
    async with connected(proxy) as socket:
        await socket.send("response.create", conversation=ids[0], input="hi")
        await socket.until("response.output_text.delta")
        for number in range(MAX_HELD + 1):
            event = {"conversation": ids[1], "input": "hi", "event_id": str(number)}
            await socket.send("response.create", **event)
        told = (await socket.until("error"))[-1]
        assert (told["status"], told["event_id"]) == (429, str(MAX_HELD))
    await proxy.until(lambda: proxy.app[PROXY].bodies.held_bytes == 0)


async def test_a_client_that_reads_nothing_is_dropped(make_node: Any, make_proxy: Any) -> None:
    node = await make_node()
    proxy = await make_proxy(node.url, write_timeout_s=0.05)
    async with connected(proxy) as socket:
        text = {"role": "user", "content": "x" * 100_000}
        ids = [f"s{number}" for number in range(4)]
        for id in ids:
            await socket.call("session.create", id=id, messages=[text])
        socket.ws._response.connection.transport.pause_reading()
        for id in ids * 40:
            await socket.send("session.messages", session=id)
        await proxy.until(lambda: len(proxy.app[SOCKETS]) == 0)
    assert proxy.app[PROXY].bodies.held_bytes == 0
    assert proxy.node(node.url).unfinished == 0


async def test_an_answer_goes_on_without_its_client(two: Any) -> None:
    proxy, nodes = two
    for node in nodes:
        node.engine.will_hang("Hel")
    async with connected(proxy) as socket:
        await socket.send("response.create", input="hi")
        created = (await socket.until("response.output_text.delta"))[0]["response"]
    await proxy.until(lambda: len(proxy.app[SOCKETS]) == 0)
    async with proxy.get(f"/v1/sessions/{created['session']}") as response:
        assert (await response.json())["running"] == [created["id"]]
    async with proxy.post(f"/v1/responses/{created['id']}/cancel") as response:
        assert (await response.json())["status"] in ("cancelled", "incomplete")


async def test_a_client_that_asks_and_leaves(two: Any) -> None:
    """At once, so that no node was called for it yet: its load is none."""
    proxy, nodes = two
    host, port = proxy.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    key = base64.b64encode(b"0123456789abcdef").decode()
    lines = [
        f"GET {PATH} HTTP/1.1",
        f"Host: {host}:{port}",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        f"Sec-WebSocket-Key: {key}",
    ]
    writer.write("\r\n".join([*lines, "", ""]).encode())
    assert b" 101 " in await reader.readuntil(b"\r\n\r\n")
    asks = b'{"type":"response.create","input":"Hi"}'
    mask = bytes(4)
    goodbye = b"\x88\x82" + mask + (1000).to_bytes(2, "big")
    writer.write(bytes((0x81, 0x80 | len(asks))) + mask + asks + goodbye)
    await reader.read()
    writer.close()
    await proxy.until(lambda: not len(proxy.app[SOCKETS]))
    await proxy.app[SOCKETS].ended()
    assert [node.unfinished for node in proxy.app[NODES]] == [0, 0]


async def test_a_node_that_ends_it_leaves_no_bytes_held(make_app: Any, make_proxy: Any) -> None:
    async def too_big(request: aiohttp.web.Request) -> aiohttp.web.StreamResponse:
        socket = aiohttp.web.WebSocketResponse(max_msg_size=1024)
        await socket.prepare(request)
        await socket.receive()
        return socket

    async def healthy(request: aiohttp.web.Request) -> aiohttp.web.Response:
        return aiohttp.web.json_response({"data": [{"id": "mock"}]})

    node = aiohttp.web.Application()
    node.router.add_get(PATH, too_big)
    node.router.add_get("/{tail:.*}", healthy)
    proxy = await make_proxy(await make_app(node))
    async with connected(proxy) as socket:
        for _ in range(8):
            event = {"type": "session.create", "title": "x" * 2**20}
            await socket.ws.send_json(event)
        while not socket.ws.closed:
            await socket.ws.receive()
        assert socket.ws.close_code == aiohttp.WSCloseCode.MESSAGE_TOO_BIG
    await proxy.until(lambda: not len(proxy.app[SOCKETS]))
    await proxy.app[SOCKETS].ended()  # what was being sent is let go there
    assert proxy.app[PROXY].bodies.held_bytes == 0


async def test_a_client_that_leaves_while_its_event_is_looked_into_leaves_no_bytes_held(
    two: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy, _ = two
    begun, left = threading.Event(), threading.Event()

    def slow(data: bytes) -> Any:
        begun.set()
        assert left.wait(20)
        return event_of(data)

    monkeypatch.setattr(connection, "event_of", slow)
    async with connected(proxy) as socket:
        await socket.ws.send_json({"type": "session.create", "title": "x" * 2**20})
        await proxy.until(begun.is_set)
        assert proxy.app[PROXY].bodies.held_bytes > 2**20
        socket.ws._response.connection.transport.abort()
    try:
        await proxy.until(lambda: not len(proxy.app[SOCKETS]))
        assert proxy.app[PROXY].bodies.held_bytes == 0
    finally:
        left.set()
