"""Files and batches, through a distributor over two nodes."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from aiohttp import FormData

from lmserve.ids import node_of

BODY = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
LINE = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": BODY}


async def upload(proxy: Any) -> Any:
    form = FormData({"purpose": "batch"})
    form.add_field("file", json.dumps(LINE).encode(), filename="a.jsonl")
    async with proxy.post("/v1/files", data=form) as response:
        assert response.status == 200
        return await response.json()


async def test_a_batch_runs_where_its_file_is(make_node: Any, make_proxy: Any) -> None:
    nodes = [await make_node(), await make_node()]
    proxy = await make_proxy(*(node.url for node in nodes), strategy="random")
    files: dict[str | None, str] = {}
    while len(files) < 2:
        file = await upload(proxy)
        files[node_of(file["id"])] = file["id"]
    for node, file_id in files.items():
        asked = {"input_file_id": file_id, "endpoint": LINE["url"], "completion_window": "24h"}
        async with proxy.post("/v1/batches", json=asked) as response:
            batch = await response.json()
        assert (response.status, node_of(batch["id"])) == (200, node)
        async with asyncio.timeout(20):
            while batch["status"] != "completed":
                await asyncio.sleep(0.05)
                async with proxy.get(f"/v1/batches/{batch['id']}") as response:
                    batch = await response.json()
        async with proxy.get(f"/v1/files/{batch['output_file_id']}/content") as response:
            assert json.loads(await response.read())["custom_id"] == "a"
