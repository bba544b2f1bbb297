"""Conversations that nodes keep, through a distributor over two of them."""

from __future__ import annotations

from typing import Any

import pytest

ONES = range(1, 9)


async def turn(proxy: Any, session_id: int, prompt: str, **fields: Any) -> tuple[int, Any]:
    body = {
        "prompt": prompt,
        "session_id": session_id,
        "interactive_mode": True,
        "request_output_len": 4,
        "ignore_eos": True,
    }
    async with proxy.post("/v1/chat/interactive", json=body | fields) as response:
        return response.status, await response.json()


async def end(proxy: Any, session_id: int, **fields: Any) -> tuple[int, Any]:
    ending = {"interactive_mode": False, "request_output_len": 0}
    return await turn(proxy, session_id, "", **ending, **fields)


@pytest.fixture
async def two(make_node: Any, make_proxy: Any) -> tuple[Any, list[Any]]:
    nodes = [await make_node(), await make_node()]
    return await make_proxy(*(node.url for node in nodes), health_interval_s=60.0), nodes


async def test_each_conversation_stays_with_its_node(two: Any) -> None:
    proxy, nodes = two
    for session_id in ONES:
        status, body = await turn(proxy, session_id, "hi")
        assert (status, body["history_tokens"]) == (200, 0)
    shares = [len(node.engine.submits) for node in nodes]
    assert sum(shares) == len(ONES)
    assert all(shares), "both have some"
    for session_id in ONES:
        status, body = await turn(proxy, session_id, "and then?")
        assert status == 200
        assert body["history_tokens"] > 0
    assert [len(node.engine.submits) for node in nodes] == [2 * share for share in shares]


async def test_a_restarted_distributor_finds_them_again(two: Any, make_proxy: Any) -> None:
    proxy, nodes = two
    for session_id in ONES:
        await turn(proxy, session_id, "hi")
    again = await make_proxy(*(node.url for node in reversed(nodes)), health_interval_s=60.0)
    for session_id in ONES:
        assert (await turn(again, session_id, "and then?"))[1]["history_tokens"] > 0


async def test_a_conversation_named_by_its_node(two: Any) -> None:
    proxy, _ = two
    for _ in ONES:
        body = {"prompt": "hi", "interactive_mode": True, "request_output_len": 4}
        async with proxy.post("/v1/chat/interactive", json=body) as response:
            session_id = int(response.headers["X-Session-Id"])
        assert (await turn(proxy, session_id, "and then?"))[1]["history_tokens"] > 0


async def test_cancelling_reaches_the_node_and_unties_nothing(two: Any) -> None:
    proxy, nodes = two
    for session_id in ONES:
        await turn(proxy, session_id, "hi")
        status, body = await turn(proxy, session_id, "", cancel=True, interactive_mode=False)
        assert (status, body["finish_reason"]) == (200, "stop")
        assert (await turn(proxy, session_id, "more"))[1]["history_tokens"] > 0


async def test_a_conversation_whose_node_died(two: Any) -> None:
    proxy, nodes = two
    homes: dict[int, Any] = {}
    for session_id in ONES:
        before = len(nodes[0].engine.submits)
        await turn(proxy, session_id, "hi")
        homes[session_id] = nodes[len(nodes[0].engine.submits) == before]
    lost = homes[1]
    kept = next(node for node in nodes if node is not lost)
    await lost.stop()
    for session_id, home in homes.items():
        status, body = await turn(proxy, session_id, "and then?")
        if home is kept:
            assert (status, body["history_tokens"] > 0) == (200, True)
            continue
        assert (status, body["error"]["code"]) == (503, "session_unavailable")
        assert f"session {session_id} " in body["message"]
        assert '"request_output_len": 0' in body["message"]
    status, body = await end(proxy, 1)
    assert (status, body["text"], body["tokens"], body["finish_reason"]) == (200, "", 0, "stop")
    status, body = await turn(proxy, 1, "hi")
    assert (status, body["history_tokens"]) == (200, 0), "anew, on the other node, as was asked"


async def test_ending_one_that_lives_is_its_nodes_affair(two: Any) -> None:
    proxy, _ = two
    await turn(proxy, 1, "hi")
    assert (await end(proxy, 1))[1]["finish_reason"] == "stop"
    assert (await turn(proxy, 1, "hi"))[1]["history_tokens"] == 0
