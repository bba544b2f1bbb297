"""Calls on the sessions of a server, and what they answer."""

from __future__ import annotations

from typing import Any

import orjson

URL = "/v1/sessions"
HI = {"role": "user", "content": "hi"}
HELLO = {"role": "assistant", "content": "Hello"}


class Talk:
    """Calls on one session."""

    def __init__(self, client: Any, id: str, headers: dict[str, str] | None = None):
        self.client = client
        self.id = id
        self.url = f"{URL}/{id}"
        self.headers = headers

    async def get(self, path: str = "", status: int = 200) -> Any:
        return await self._call("GET", path, None, status)

    async def post(self, path: str, body: Any, status: int = 200) -> Any:
        return await self._call("POST", path, body, status)

    async def delete(self, status: int = 200) -> Any:
        return await self._call("DELETE", "", None, status)

    async def turn(self, status: int = 200, **body: Any) -> Any:
        return await self.post("/turns", body, status)

    async def line(self, at: str | None = None) -> list[str]:
        """The texts from the root to the head."""
        listed = await self.get("/messages" + (f"?at={at}" if at else ""))
        return [message["content"] for message in listed["data"]]

    async def _call(self, method: str, path: str, body: Any, status: int) -> Any:
        async with self.client.request(
            method, self.url + path, json=body, headers=self.headers
        ) as response:
            answer = await response.json()
            assert response.status == status, answer
            if status == 200 and path != "/fork":
                assert response.headers["X-Session-Id"] == self.id
            return answer


async def begin(client: Any, headers: dict[str, str] | None = None, **body: Any) -> Talk:
    async with client.post(URL, json=body, headers=headers) as response:
        answer = await response.json()
        assert response.status == 200, answer
        return Talk(client, answer["id"], headers)


def ids(listed: Any) -> list[str]:
    return [each["id"] for each in listed["data"]]


def read_events(stream: bytes, first: int = 0) -> list[tuple[str, Any]]:
    """Of a stream of response events: all are named and numbered, and the last is whole."""
    assert stream.endswith(b"\n\n")
    told = []
    for number, block in enumerate(stream.decode().removesuffix("\n\n").split("\n\n"), first):
        id, name, text = block.split("\n")
        data = orjson.loads(text.removeprefix("data: "))
        assert (id, name) == (f"id: {number}", f"event: {data['type']}")
        assert data["sequence_number"] == number
        told.append((data["type"], data))
    return told
