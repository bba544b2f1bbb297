"""Every thing that a request may name, with every value that it must not have, on every route."""

from __future__ import annotations

from collections.abc import Iterator

import aiohttp
import pytest

from tests.hardening.asking import ask
from tests.hardening.conftest import told
from tests.hardening.doors import DOORS, Door
from tests.hardening.values import BAD

HEAVY = ("schema", "regex", "grammar")
NUM_SHARES = 3  # a client takes a moment to make


def cases(door: Door, heavy: bool) -> Iterator[tuple[str, str]]:
    """`heavy`: what costs time to refuse. All of it at the first door, as one judge has it for
    all, and its share in the slow tests."""
    for thing in door.names:
        kind = thing.partition("@")[0]
        for raw in BAD.get(kind, ()):
            if (kind in HEAVY and door is not DOORS[0] and len(raw) > 100) == heavy:
                yield thing, raw


@pytest.mark.parametrize("share", range(NUM_SHARES))
async def test_each_value_is_refused_with_its_name(
    client: aiohttp.ClientSession, share: int
) -> None:
    await all_refused(client, share, heavy=False)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("share", range(NUM_SHARES))
async def test_each_bomb_is_refused_everywhere(client: aiohttp.ClientSession, share: int) -> None:
    await all_refused(client, share, heavy=True)


async def all_refused(client: aiohttp.ClientSession, share: int, *, heavy: bool) -> None:
    wrong = []
    for door in DOORS[share::NUM_SHARES]:
        for thing, raw in cases(door, heavy):
            status, body = await ask(client, door, door.with_thing(thing, raw))
            if not 400 <= status < 500 or not names(door, thing, body):
                wrong.append(f"{door.id} {thing}={raw[:60]}: {status} {body[:300]!r}")
    assert not wrong, "\n".join(wrong)


def names(door: Door, thing: str, body: bytes) -> bool:
    """Whether a refusal says what is wrong in the client's own words."""
    message, param = told(body)
    if thing == "schema@tools" and "maximum context" in message:
        return True  # they are told to the model, too
    name = door.names[thing].split(".")[0]
    if param is not None:
        return param.startswith(name)
    # a socket's frame may be too deep
    return name in message or "not valid JSON" in message
