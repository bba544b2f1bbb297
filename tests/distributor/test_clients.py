"""The clients of ours, to which a distributor is a server."""

from __future__ import annotations

from typing import Any

import pytest
from lmserve_client import Lmserve
from lmserve_client.sessions import new_id

from lmserve.ids import node_of


@pytest.mark.parametrize("websocket", [True, False])
async def test_sessions_of_its_own_naming(make_node: Any, make_proxy: Any, websocket: bool) -> None:
    nodes = [await make_node(), await make_node()]
    proxy = await make_proxy(*(node.url for node in nodes))
    async with Lmserve(proxy.url, websocket=websocket) as client:
        for _ in range(4):
            session = await client.sessions.create(title="one")
            answer = await client.respond("Hi there", session=session, max_output_tokens=2)
            assert answer.session == session.id and await answer.text()
            fork = await client.sessions.fork(session)
            assert len(await client.sessions.messages(fork)) == 2


def test_its_names_are_of_no_node() -> None:
    """They would be looked for at a node that nobody knows."""
    assert node_of(new_id("sess_")) is None
