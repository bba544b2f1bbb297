"""What the playground tells its page of an answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest

from lmserve.cli.interactive import Line
from lmserve.edge.hosts import Hosts

pytest.importorskip("gradio")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


async def test_a_page_that_takes_its_time_is_told_the_end() -> None:
    from lmserve.cli.playground import Answer

    more = asyncio.Event()

    async def lines() -> AsyncGenerator[Line, None]:
        yield Line("Good", 1, 0, None)
        await more.wait()
        yield Line(" morning", 2, 0, "stop")

    answer = Answer(lines())
    texts = answer.grow()
    assert await anext(texts) == "Good"
    more.set()
    async with asyncio.timeout(20):
        while answer.finish_reason is None:  # noqa: ASYNC110  (nothing tells of it)
            await asyncio.sleep(0)
    assert [text async for text in texts] == ["Good morning"]
    assert answer.num_tokens == 2


PAGE = {"Host": "localhost:6006", "Sec-Fetch-Site": "same-origin"}


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (PAGE, 204),
        ({"Host": "127.0.0.1:6006"}, 204),
        ({"Host": "chat.example.com"}, 204),
        (PAGE | {"Host": "rebound.example.org:6006"}, 403),
        (PAGE | {"Sec-Fetch-Site": "same-site"}, 403),
        (PAGE | {"Sec-Fetch-Site": "cross-site"}, 403),
    ],
)
async def test_no_other_page_uses_its_key(headers: dict[str, str], status: int) -> None:
    from httpx import ASGITransport, AsyncClient
    from starlette.responses import Response

    from lmserve.cli.playground_server import Door

    hosts = Hosts("localhost", ["chat.example.com"], has_keys=False)
    door = ASGITransport(Door(Response(status_code=204), hosts))
    async with AsyncClient(transport=door, base_url="http://localhost") as client:
        answer = await client.post("/gradio_api/queue/join", headers=headers)
        assert answer.status_code == status
        assert (await client.get("/", headers=headers | {"Host": "localhost"})).status_code == 204
        if "rebound" in headers["Host"]:
            assert "--allowed-hosts" in answer.text
