"""Nodes that refuse, hang up, fall silent or die: who is told what, and who is asked instead."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest
from aiohttp import ClientError, web

from lmserve.distributor.keys import METRICS, NODES
from lmserve.distributor.nodes import Node
from lmserve.protocol.encode import COMMENT
from tests.distributor.nodes import CHAT, chunks, whole

EVENT = b'data: {"n":1}\n\n'
LINE = b'{"text":"Hel","tokens":1}\n'
TURN = {"prompt": "hi", "session_id": 5, "interactive_mode": True, "stream": True}


async def pair(make_node: Any, make_proxy: Any, first: str, **settings: Any) -> tuple[Any, Any]:
    """A distributor that will ask `first` first, then a server."""
    node = await make_node()
    proxy = await make_proxy(node.url, health_interval_s=60.0, **settings)
    other = Node(first, configured=True)
    other.models = ("mock",)
    other.up()
    proxy.app[NODES].add(other)  # and nobody watches it
    proxy.node(node.url).unfinished = 1  # `first` looks better
    return node, proxy


async def test_a_node_that_refuses_is_passed_over(
    make_node: Any, make_proxy: Any, dead_url: str
) -> None:
    node, proxy = await pair(make_node, make_proxy, dead_url)
    status, _ = await proxy.chat()
    assert status == 200
    assert not proxy.node(dead_url).alive
    assert len(node.engine.submits) == 1
    async with proxy.get("/metrics") as response:
        text = await response.text()
    assert f'lmserve_proxy_retries_total{{node="{dead_url}"}} 1.0' in text
    assert f'lmserve_proxy_failures_total{{node="{dead_url}"}} 1.0' in text


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200", whole(b"", "503 Service Unavailable")])
async def test_before_the_first_byte_another_is_asked(
    make_node: Any, make_proxy: Any, make_bare: Any, answer: bytes
) -> None:
    first = await make_bare(answer)
    _, proxy = await pair(make_node, make_proxy, first.url)
    status, _ = await proxy.chat()
    assert status == 200
    assert len(first.heads) == 1


async def test_what_ends_two_nodes_is_not_tried_on_a_third(make_bare: Any, make_proxy: Any) -> None:
    nodes = [await make_bare() for _ in range(3)]
    proxy = await make_proxy(*(node.url for node in nodes), health_interval_s=60.0)
    status, body = await proxy.chat()
    assert (status, body["error"]["code"]) == (503, "node_unavailable")
    assert sum(len(node.heads) for node in nodes) == 2


async def test_what_may_not_be_done_twice_is_not(
    make_node: Any, make_proxy: Any, make_bare: Any
) -> None:
    first = await make_bare()
    _, proxy = await pair(make_node, make_proxy, first.url)
    async with proxy.post("/sleep") as response:
        assert response.status == 503
        assert "was lost" in (await response.json())["message"]


async def test_all_nodes_dead(make_proxy: Any, dead_url: str) -> None:
    proxy = await make_proxy(dead_url, health_interval_s=60.0)
    assert (await proxy.chat())[0] == 503
    proxy.node(dead_url).alive = True
    async with proxy.post("/v1/completions", json={"prompt": "hi"}) as response:
        assert response.status == 503
        assert "Retry-After" in response.headers
        assert dead_url in (await response.json())["message"]


async def test_each_api_is_told_in_its_own_words(make_proxy: Any, dead_url: str) -> None:
    proxy = await make_proxy(dead_url)
    for path in ("/v1/messages", "/v1/messages/count_tokens"):
        async with proxy.post(path, json=CHAT) as response:
            body = await response.json()
        assert (response.status, body["type"]) == (503, "error")
        assert body["error"]["type"] == "overloaded_error"
        assert body["request_id"] == response.headers["request-id"]
    async with proxy.post("/api/chat", json=CHAT) as response:
        assert (response.status, [*await response.json()]) == (503, ["error"])


async def test_a_message_that_breaks_ends_with_anthropic_s_error(
    make_bare: Any, make_proxy: Any
) -> None:
    node = await make_bare(chunks(EVENT))
    proxy = await make_proxy(node.url)
    async with proxy.post("/v1/messages", json=CHAT) as response:
        body = await response.read()
    name, data = body.removeprefix(EVENT).split(b"\n", 1)
    assert name == b"event: error"
    told = orjson.loads(data.removeprefix(b"data: "))
    assert (told["type"], told["error"]["type"]) == ("error", "api_error")


async def test_the_last_503_is_the_nodes_own(make_bare: Any, make_proxy: Any) -> None:
    node = await make_bare(whole(b'{"mine": 1}', "503 Service Unavailable"))
    proxy = await make_proxy(node.url)
    assert await proxy.chat() == (503, {"mine": 1})


async def test_a_stream_that_breaks_ends_with_an_error(make_bare: Any, make_proxy: Any) -> None:
    node = await make_bare(chunks(EVENT))
    proxy = await make_proxy(node.url)
    async with proxy.post("/v1/chat/completions", json=CHAT | {"stream": True}) as response:
        body = await response.read()
    events = body.split(b"\n\n")
    assert events[0] + b"\n\n" == EVENT
    assert orjson.loads(events[1].removeprefix(b"data: "))["error"]["code"] == "node_lost"
    assert events[2:] == [b"data: [DONE]", b""]


async def test_an_event_cut_in_two_is_ended_first(make_bare: Any, make_proxy: Any) -> None:
    node = await make_bare(chunks(EVENT[:-4]))
    proxy = await make_proxy(node.url)
    async with proxy.get("/any") as response:
        body = await response.read()
    assert body.split(b"\n\n")[0] == EVENT[:-4]
    assert body.split(b"\n\n")[1].startswith(b'data: {"error":')


async def test_no_blank_line_follows_a_comment(make_bare: Any, make_proxy: Any) -> None:
    node = await make_bare(chunks(EVENT, COMMENT))
    proxy = await make_proxy(node.url)
    async with proxy.post("/v1/chat/completions", json=CHAT | {"stream": True}) as response:
        body = await response.read()
    assert body.startswith(EVENT + COMMENT + b'data: {"error":')


async def test_a_session_s_stream_has_named_events(make_bare: Any, make_proxy: Any) -> None:
    node = await make_bare(chunks(b"event: turn.delta\n" + EVENT))
    proxy = await make_proxy(node.url)
    async with proxy.post("/v1/sessions/1/turns", json={"input": "hi"}) as response:
        body = await response.read()
    assert body.split(b"\n\n")[1].startswith(b'event: error\ndata: {"error":')
    assert b"[DONE]" not in body


async def test_an_interactive_stream_has_its_own_words(make_bare: Any, make_proxy: Any) -> None:
    node = await make_bare(chunks(LINE))
    proxy = await make_proxy(node.url)
    async with proxy.post("/v1/chat/interactive", json=TURN) as response:
        lines = (await response.read()).splitlines()
    assert lines[0] + b"\n" == LINE
    last = orjson.loads(lines[1])
    assert set(last) == {"text", "tokens", "input_tokens", "history_tokens", "finish_reason"}
    assert last["finish_reason"] == "error"
    assert len(lines) == 2


@pytest.mark.parametrize(
    "answer",
    [
        whole(b"x" * 100)[:-50],
        chunks(b"{", content_type="application/json"),
        chunks(EVENT).replace(b"\r\n\r\n", b"\r\nContent-Encoding: gzip\r\n\r\n", 1),
    ],
)
async def test_what_has_no_words_is_cut(make_bare: Any, make_proxy: Any, answer: bytes) -> None:
    node = await make_bare(answer)
    proxy = await make_proxy(node.url)
    with pytest.raises(ClientError):
        async with proxy.get("/any", headers={"Accept-Encoding": "identity"}) as response:
            assert response.status == 200
            await response.read()


async def test_a_node_that_falls_silent_does_not_hold_its_clients(
    make_app: Any, make_proxy: Any
) -> None:
    """Connected still, but nothing comes, not even to questions for its health."""
    well, begun = True, asyncio.Event()

    async def anything(request: web.Request) -> web.StreamResponse:
        if request.path == "/v1/models":
            return web.json_response({"data": [{"id": "m"}]})
        if request.path == "/health" and well:
            return web.Response()
        if request.path == "/stream":
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
            await response.prepare(request)
            await response.write(EVENT)
        begun.set()
        await asyncio.Event().wait()
        raise AssertionError

    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", anything)
    url = await make_app(app)
    proxy = await make_proxy(url, health_timeout_s=1.0, cut_after_s=0.0)
    async with proxy.get("/stream") as response:
        assert await response.content.readany() == EVENT
        waiting = asyncio.create_task(proxy.chat())
        await begun.wait()
        well = False
        rest = await response.read()
    assert rest.startswith(b'data: {"error":')
    assert (await waiting)[0] == 503
    well = True
    await proxy.until(lambda: proxy.node(url).alive)


async def test_a_node_that_is_back_is_used_again(make_bare: Any, make_proxy: Any) -> None:
    node = await make_bare(whole(b"{}"))
    proxy = await make_proxy(node.url)
    assert (await proxy.chat())[0] == 200
    port = int(node.url.rsplit(":", 1)[1])
    await node.stop()
    await proxy.until(lambda: not proxy.node(node.url).alive)
    async with proxy.get("/health") as response:
        assert response.status == 503
    assert (await proxy.chat())[0] == 503
    assert proxy.node(node.url).reason
    await node.start(port)
    await proxy.until(lambda: proxy.node(node.url).alive)
    assert (await proxy.chat())[0] == 200


async def test_an_engine_that_restarts_gets_nothing_meanwhile(
    make_node: Any, make_proxy: Any
) -> None:
    node = await make_node()
    proxy = await make_proxy(node.url)
    node.engine.die()
    await proxy.until(lambda: not proxy.node(node.url).alive)
    assert proxy.node(node.url).reason == "its /health says 503"
    node.engine.resume()
    await proxy.until(lambda: proxy.node(node.url).alive)


async def test_a_node_that_sleeps_gets_nothing(make_node: Any, make_proxy: Any) -> None:
    """Its /health says 200: it is as it should be."""
    node, other = await make_node(), await make_node()
    proxy = await make_proxy(node.url, other.url)
    await node.engine.sleep()
    await proxy.until(lambda: not proxy.node(node.url).alive)
    assert proxy.node(node.url).reason == "it was put to sleep"
    for _ in range(5):
        assert (await proxy.chat())[0] == 200
    async with proxy.get("/metrics") as response:
        assert f'requests_total{{node="{node.url}"}}' not in await response.text()
    await other.engine.sleep()
    await proxy.until(lambda: not proxy.node(other.url).alive)
    async with proxy.post("/v1/chat/completions", json=CHAT) as response:
        assert response.status == 503
        assert response.headers["Retry-After"]
    await node.engine.wake()
    await proxy.until(lambda: proxy.node(node.url).alive)
    assert (await proxy.chat())[0] == 200


@pytest.mark.parametrize("said", [b"", b"[]", b"\xff", b'{"status": 3}', b"[" * 5000])
async def test_other_words_of_health_are_no_matter(
    make_app: Any, make_proxy: Any, said: bytes
) -> None:
    async def health(_: web.Request) -> web.Response:
        return web.Response(body=said)

    async def models(_: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "m"}]})

    app = web.Application()
    app.add_routes([web.get("/health", health), web.get("/v1/models", models)])
    url = await make_app(app)
    proxy = await make_proxy(url)
    assert proxy.node(url).alive


async def test_a_distributor_among_its_own_nodes(make_node: Any, make_proxy: Any) -> None:
    node = await make_node()
    proxy = await make_proxy(node.url, health_interval_s=60.0)
    itself = Node(proxy.url, configured=True)
    itself.models = ("mock",)
    itself.up()
    proxy.app[NODES].add(itself)
    proxy.node(node.url).unfinished = 1
    assert (await proxy.chat())[0] == 200
    assert len(node.engine.submits) == 1
    assert not itself.alive
    itself.up()
    node.engine.die()
    proxy.node(node.url).down("")
    status, body = await proxy.chat()
    assert (status, body["error"]["code"]) == (503, "node_unavailable")
    assert "its own nodes" in body["message"]


async def test_who_registered_and_is_gone_is_dropped(make_proxy: Any, dead_url: str) -> None:
    """Time is passed in."""
    kept, long_ago_s = dead_url + "/kept", 1000.0
    proxy = await make_proxy(kept)
    told = {"url": dead_url, "status": {"models": ["m"]}}
    async with proxy.post("/nodes/add", json=told) as response:
        assert response.status == 200
    node = proxy.node(dead_url)
    before = node.seen_s
    async with proxy.post("/nodes/add", json=told) as response:  # a heart-beat
        assert response.status == 200
    assert node.seen_s > before
    await proxy.until(lambda: not node.alive)
    assert set(proxy.known()) == {kept, dead_url}
    for each in (node, proxy.node(kept)):
        each.seen_s -= long_ago_s
    proxy.app[METRICS].requests.labels(dead_url).inc()  # as after a request there
    await proxy.until(lambda: proxy.known() == [kept])
    async with proxy.get("/metrics") as response:
        assert f'node="{dead_url}"' not in await response.text()


async def test_dead_nodes_of_the_nodes_routes(make_proxy: Any, dead_url: str) -> None:
    proxy = await make_proxy(dead_url)
    async with proxy.post("/nodes/terminate", json={"url": dead_url}) as response:
        assert response.status == 503
        assert (await response.json())["error"]["code"] == "node_unavailable"
