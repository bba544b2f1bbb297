"""The same values in the lines of a batch: each is refused alone, in its own place."""

from __future__ import annotations

import aiohttp

from tests.hardening.doors import DOORS, Door
from tests.hardening.values import BAD
from tests.server.batching import create, results, until, upload

FIRST = 12  # values of each thing


def batch(door: Door) -> tuple[bytes, int]:
    """Lines, as they are written, and how many; one in the middle is right."""
    bodies = [
        door.with_thing(thing, raw)
        for thing in door.names
        if thing != "priority"  # a batch has its own
        for raw in BAD.get(thing, ())[:FIRST]
        if len(raw) < 2000
    ]
    bodies.insert(len(bodies) // 2, door.with_thing("temperature", "0"))
    lines = [
        f'{{"custom_id":"{index}","method":"POST","url":"{door.path}","body":{body}}}\n'
        for index, body in enumerate(bodies)
    ]
    return "".join(lines).encode(), len(lines)


async def test_each_line_is_refused_alone(client: aiohttp.ClientSession) -> None:
    for door in DOORS[:2]:
        content, num_lines = batch(door)
        status, file = await upload(client, content)
        assert status == 200, file
        begun = await create(client, file["id"], endpoint=door.path)
        done = await until(client, begun, "completed", "failed", "expired", "cancelled")
        assert done["status"] == "completed", done
        served = await results(client, done["output_file_id"])
        lines = content.splitlines()
        assert len(served) == 1, [lines[int(id)] for id in served]
        counts = done["request_counts"]
        assert counts == {"total": num_lines, "completed": 1, "failed": num_lines - 1}
        failed = await results(client, done["error_file_id"])
        for id, line in failed.items():
            assert 400 <= line["response"]["status_code"] < 500, (id, line)
            assert line["response"]["body"]["error"]["param"], (id, line)
