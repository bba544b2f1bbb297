"""Responses that nodes keep, through a distributor over two of them."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import orjson
import pytest

from lmserve.ids import node_of
from lmserve.service.node_id import NAME

ONES = range(1, 25)  # nodes' ports are random: one has all once in 2**23 runs


async def said(proxy: Any, path: str = "/v1/responses", *, headers: Any = None, **body: Any) -> Any:
    fields = {"input": "hi", "max_output_tokens": 4} if path.endswith("/responses") else {}
    async with proxy.post(path, json=fields | body, headers=headers) as response:
        return response.status, await response.json()


async def read(proxy: Any, path: str, **options: Any) -> Any:
    async with proxy.get(path, **options) as response:
        return response.status, await response.json()


@pytest.fixture
async def two(make_node: Any, make_proxy: Any) -> tuple[Any, list[Any]]:
    nodes = [await make_node(), await make_node()]
    return await make_proxy(*(node.url for node in nodes), strategy="random"), nodes


async def some(proxy: Any, nodes: list[Any]) -> list[Any]:
    """Responses, until both nodes have one."""
    kept: list[Any] = []
    while len({node_of(each["id"]) for each in kept}) < 2:
        status, response = await said(proxy)
        assert status == 200, response
        kept.append(response)
    return kept


async def test_what_follows_a_response_goes_to_its_node(two: Any, make_proxy: Any) -> None:
    proxy, nodes = two
    first = await some(proxy, nodes)
    again = await make_proxy(*(node.url for node in reversed(nodes)), strategy="random")
    for each in first:  # a distributor that saw nothing of it, as one that was restarted
        id = each["id"]
        status, second = await said(again, previous_response_id=id)
        assert (status, second["session"], node_of(second["id"])) == (
            200,
            each["session"],
            node_of(id),
        )
        assert (await said(again, regenerate=second["id"], input=None))[0] == 200
        assert (await said(again, conversation={"id": each["session"]}))[0] == 200
        assert (await said(again, conversation=each["session"]))[0] == 200
        for path in ("", "/input_items"):
            assert (await read(again, f"/v1/responses/{id}{path}"))[0] == 200
        assert (await said(again, f"/v1/responses/{id}/cancel"))[1]["id"] == id
        assert (await said(again, f"/v1/sessions/{each['session']}/fork"))[0] == 200
        async with again.delete(f"/v1/responses/{second['id']}") as response:
            assert (response.status, (await response.json())["deleted"]) == (200, True)


async def test_an_unnamed_fork_outlives_the_memory_of_the_distributor(
    two: Any, make_proxy: Any
) -> None:
    proxy, nodes = two
    forks = []
    for number in ONES:
        await said(proxy, "/v1/sessions", id=f"s{number}")
        forks.append((await said(proxy, f"/v1/sessions/s{number}/fork"))[1]["id"])
    assert len({node_of(id) for id in forks}) == 2
    again = await make_proxy(*(node.url for node in reversed(nodes)))
    for id in forks:
        assert (await read(again, f"/v1/sessions/{id}"))[1]["id"] == id


async def test_ids_that_no_node_gave(two: Any) -> None:
    proxy, _ = two
    for path in ("/v1/responses/resp_none", "/v1/streams/strm_none", "/v1/sessions/none"):
        assert (await read(proxy, path))[0] == 404
    status, told = await said(proxy, previous_response_id="resp_none")
    assert (status, told["error"]["code"]) == (404, "previous_response_not_found")
    nobodys = f"resp_{'0' * 32}"
    status, told = await read(proxy, f"/v1/responses/{nobodys}")
    assert (status, told["error"]["code"]) == (503, "session_unavailable")
    assert "kept by node 00000000" in told["message"]


async def test_a_response_whose_node_is_gone(two: Any) -> None:
    proxy, nodes = two
    first = await some(proxy, nodes)
    gone = proxy.node(nodes[0].url).id
    await nodes[0].stop()
    for each in first:
        away = node_of(each["id"]) == gone
        for asked in (
            said(proxy, previous_response_id=each["id"]),
            read(proxy, f"/v1/responses/{each['id']}"),
            read(proxy, f"/v1/sessions/{each['session']}"),
        ):
            status, told = await asked
            assert status == (503 if away else 200)
            if away:
                assert told["error"]["code"] == "session_unavailable"
                assert nodes[0].url in told["message"]


async def test_reading_goes_on_where_it_was_cut(two: Any) -> None:
    proxy, nodes = two
    for node in nodes:
        node.engine.will_hang("Hel").will_say("good")
    body = {"input": "hi", "stream": True}
    async with proxy.post("/v1/responses", json=body) as response:
        id, session = response.headers["X-Stream-Id"], response.headers["X-Session-Id"]
        text = b""
        while b"response.output_text.delta" not in text:
            text += await response.content.readline()
    number = int(text.rsplit(b"id: ", 1)[1].split(b"\n")[0])
    headers = {"Last-Event-ID": str(number)}
    readers = [
        asyncio.create_task(whole(proxy, f"/v1/responses/{id}?stream=true&starting_after=-1")),
        asyncio.create_task(whole(proxy, f"/v1/streams/{id}", headers)),
    ]
    assert (await read(proxy, f"/v1/sessions/{session}"))[1]["running"] == [id]
    assert (await said(proxy, f"/v1/responses/{id}/steer", input="shorter"))[0] == 200
    all_, rest = await asyncio.gather(*readers)
    assert all_.startswith(b"id: 0\n")
    assert all_.endswith(rest)
    assert rest.startswith(b"id: %d\n" % (number + 1))
    assert b"response.incomplete" in rest


async def test_plain_streams_are_found(two: Any) -> None:
    proxy, nodes = two
    for _ in ONES:
        async with proxy.post(
            "/v1/chat/completions",
            json={"messages": [{"role": "user", "content": "hi"}], "stream": True, "max_tokens": 2},
            headers={"X-Resumable": "true"},
        ) as response:
            id, all_ = response.headers["X-Stream-Id"], await response.read()
        assert await whole(proxy, f"/v1/streams/{id}") == all_


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/chat/completions"])
async def test_the_same_request_again_joins_its_answer(two: Any, path: str) -> None:
    proxy, nodes = two
    body = {"messages": [{"role": "user", "content": "hi"}]}
    for number in ONES:
        headers = {"Idempotency-Key": f"k{number}"}
        told = [
            (await said(proxy, path, headers=headers, **(body if "chat" in path else {})))[1]["id"]
            for _ in range(3)
        ]
        assert len(set(told)) == 1
    assert sum(len(node.engine.submits) for node in nodes) == len(ONES)


async def test_nodes_with_a_copied_data_directory(
    make_node: Any, make_proxy: Any, tmp_path: Path, caplog: Any
) -> None:
    nodes = [await make_node()]
    (tmp_path / "node-1").mkdir()
    (tmp_path / "node-1" / NAME).write_text((tmp_path / "node-0" / NAME).read_text())
    nodes.append(await make_node())
    proxy = await make_proxy(*(node.url for node in nodes), strategy="random")
    assert "have the same node_id" in caplog.text
    for _ in ONES:
        _, first = await said(proxy)
        previous = first["id"]
        for _ in range(3):
            status, second = await said(proxy, previous_response_id=previous)
            assert (status, second["session"]) == (200, first["session"]), second
            previous = second["id"]
    assert all(node.engine.submits for node in nodes), "both have some"


async def test_a_response_lost_in_mid_stream_says_so(make_bare: Any, make_proxy: Any) -> None:
    event = b'id: 0\nevent: response.created\ndata: {"type":"response.created"}\n\n'
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n"
    node = await make_bare(head + b"\r\n%x\r\n%b\r\n" % (len(event), event))
    proxy = await make_proxy(node.url)
    text = await whole(proxy, "/v1/streams/any")
    created, error, rest = text.split(b"\n\n")
    assert (created + b"\n\n", rest) == (event, b"")
    name, data = error.split(b"\n")
    assert name == b"event: error"
    assert orjson.loads(data.removeprefix(b"data: "))["error"]["code"] == "node_lost"


async def whole(proxy: Any, path: str, headers: Any = None) -> bytes:
    async with proxy.get(path, headers=headers) as response:
        assert response.status == 200, await response.text()
        return await response.read()
