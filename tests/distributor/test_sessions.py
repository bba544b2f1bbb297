"""Conversations that nodes keep, through a distributor over two of them."""

from __future__ import annotations

from typing import Any

import pytest

ONES = range(1, 25)  # nodes' ports are random: one has all once in 2**23 runs


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


# --- /v1/sessions ---------------------------------------------------------------------------


async def say(proxy: Any, id: object, text: str) -> tuple[int, Any]:
    body = {"input": text, "max_tokens": 4, "ignore_eos": True}
    async with proxy.post(f"/v1/sessions/{id}/turns", json=body) as response:
        return response.status, await response.json()


async def opened(proxy: Any, path: str = "", **body: Any) -> str:
    async with proxy.post(f"/v1/sessions{path}", json=body) as response:
        session = await response.json()
        assert response.status == 200, session
        assert response.headers["X-Session-Id"] == session["id"]
        return str(session["id"])


async def num_kept(proxy: Any, id: object) -> int:
    async with proxy.get(f"/v1/sessions/{id}") as response:
        assert response.status == 200, await response.text()
        return int((await response.json())["num_messages"])


@pytest.mark.parametrize("named", [True, False])
async def test_a_session_stays_with_its_node(two: Any, named: bool) -> None:
    proxy, nodes = two
    ids = [await opened(proxy, **({"id": f"s{n}"} if named else {})) for n in ONES]
    for id in ids:
        for _ in range(2):
            status, told = await say(proxy, id, "hi")
            assert status == 200, told
        assert await num_kept(proxy, id) == 4
    assert all(node.engine.submits for node in nodes), "both have some"


async def test_named_sessions_are_found_by_a_restarted_distributor(
    two: Any, make_proxy: Any
) -> None:
    proxy, nodes = two
    for number in ONES:
        await opened(proxy, id=f"s{number}")
    again = await make_proxy(*(node.url for node in reversed(nodes)), health_interval_s=60.0)
    for number in ONES:
        assert await num_kept(again, f"s{number}") == 0


async def test_forks_and_imports_are_found(two: Any) -> None:
    proxy, _ = two
    for number in ONES:
        id = await opened(proxy, id=f"s{number}")
        await say(proxy, id, "hi")
        for forked in (await opened(proxy, f"/{id}/fork"), f"fork{number}"):
            if forked.startswith("fork"):
                await opened(proxy, f"/{id}/fork", id=forked)
            assert await num_kept(proxy, forked) == 2
        async with proxy.get(f"/v1/sessions/{id}/export") as response:
            exported = await response.json()
        for back in ({}, {"id": f"back{number}"}):
            assert (
                await num_kept(proxy, await opened(proxy, "/import", session=exported, **back)) == 2
            )


async def test_a_fork_hides_no_session_of_another_node(two: Any) -> None:
    proxy, nodes = two
    ids = [await opened(proxy, id=f"s{number}") for number in ONES]
    for id in ids:
        await say(proxy, id, "hi")
    assert all(node.engine.submits for node in nodes), "both have some"
    for id in ids:
        async with proxy.post(f"/v1/sessions/{ids[0]}/fork", json={"id": id}) as response:
            assert response.status == 409
            assert (await response.json())["error"]["code"] == "session_exists"
    assert [await num_kept(proxy, id) for id in ids] == [2] * len(ids)


async def test_both_routes_meet_in_one_session(two: Any) -> None:
    proxy, _ = two
    for session_id in ONES:
        await turn(proxy, session_id, "hi")
        assert (await say(proxy, session_id, "and then?"))[0] == 200
        assert (await turn(proxy, session_id, "more"))[1]["history_tokens"] > 0
        assert await num_kept(proxy, session_id) == 6


async def test_a_session_whose_node_died_is_away_and_unknown_ones_are_not_there(two: Any) -> None:
    proxy, nodes = two
    id = await opened(proxy, id="mine")
    await say(proxy, id, "hi")
    home = next(node for node in nodes if node.engine.submits)
    assert (await say(proxy, "nobody", "hi"))[0] == 404
    await home.stop()
    status, told = await say(proxy, id, "and then?")
    assert (status, told["error"]["code"]) == (503, "session_unavailable")
    assert "session mine is kept by" in told["message"]


async def test_a_deleted_session_is_untied(two: Any) -> None:
    proxy, nodes = two
    id = await opened(proxy, id="mine")
    await say(proxy, id, "hi")
    home = next(node for node in nodes if node.engine.submits)
    async with proxy.delete(f"/v1/sessions/{id}") as response:
        assert response.status == 200
    await home.stop()
    assert await opened(proxy, id="mine") == id
