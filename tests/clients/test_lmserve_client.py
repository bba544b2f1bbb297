"""`Lmserve` over the real server, and over a network that fails."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from itertools import repeat
from pathlib import Path
from typing import Any

import httpx2
import pytest
from blockbuster import blockbuster_ctx
from lmserve_client import (
    Answer,
    AnswerInterrupted,
    APIConnectionError,
    APIStatusError,
    APIStreamError,
    Lmserve,
    SteerFailed,
)

from tests.clients.faults import Site

KEY = "secret"
HANDSHAKE_BYTES = 300  # more than the server's answer to an upgrade, less than any event after it
SEED = 20261123


@pytest.fixture(scope="module", autouse=True)
def imports() -> None:
    """httpx2 imports parts of itself at its first client: once, and not counted as blocking."""
    httpx2.AsyncClient()


@pytest.fixture(autouse=True)
def no_blocking(imports: None) -> Iterator[None]:
    with blockbuster_ctx("lmserve_client"):
        yield


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with AsyncExitStack() as stack:
        site = Site(tmp_path, stack)
        await site.start()
        stack.push_async_callback(site.stop)
        yield site


@pytest.fixture(params=["websocket", "http"])
async def client(site: Site, request: pytest.FixtureRequest) -> Lmserve:
    return await site.client(websocket=request.param == "websocket")


@pytest.fixture
async def socket_client(site: Site) -> Lmserve:
    return await site.client()


async def heard(answer: Answer, text: str) -> None:
    """Returns when so much was said."""
    said = ""
    async for piece in answer:
        said += piece
        if said == text:
            return
    raise AssertionError(said)


async def test_an_answer(site: Site, client: Lmserve) -> None:
    site.fake.will_say("Hel", "lo")
    answer = await client.respond("hi", temperature=0.5)
    assert answer.id.startswith("resp_")
    assert "".join([piece async for piece in answer]) == "Hello"
    assert await answer.text() == "Hello"
    response = await answer.response()
    assert (response.id, response.status, response.text) == (answer.id, "completed", "Hello")
    assert response.session == answer.session
    assert response.usage is not None and answer.reused_tokens == response.usage.reused_tokens
    events = [event async for event in answer.events()]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert (events[0].type, events[-1].type) == ("response.created", "response.completed")
    assert site.fake.submits[0].sampling.temperature == 0.5


async def test_turns_make_a_tree(site: Site, client: Lmserve) -> None:
    site.fake.will_say("One").will_say("Two").will_say("Three").will_say("Four").will_say("Five")
    session = await client.sessions.create(title="Numbers")
    first = await client.respond("a", session=session)
    assert await first.text() == "One"
    second = await client.respond("b", previous=first)
    assert await second.text() == "Two"
    said = (await second.response()).input_message_ids
    edited = await client.respond("c", session=session, edit=said[0])
    assert await edited.text() == "Three"
    again = await client.respond(regenerate=edited.id)
    assert await again.text() == "Four"
    line = await client.sessions.messages(session)
    assert [message.text for message in line] == ["a", "One", "c", "Four"]
    assert len(line[-1].siblings) == 2
    after = await client.respond("d", session=session, after=line[1])
    assert await after.text() == "Five"
    tree = await client.sessions.messages(session, tree=True)
    assert len(tree) == 9


async def test_sessions(site: Site, client: Lmserve) -> None:
    sessions = client.sessions
    one = await sessions.create(id="one", title="One")
    added = await sessions.append(one, [{"role": "user", "content": "hi"}])
    more = await sessions.append(one, [{"role": "assistant", "content": "Hello"}], after=added[0])
    assert (await sessions.get("one")).head == more[0].id
    assert (await sessions.rename(one, "Uno")).title == "Uno"
    assert (await sessions.rollback(one, added[0])).head == added[0].id
    fork = await sessions.fork(one, at=more[0], title="Two")
    assert [message.text for message in await sessions.messages(fork)] == ["hi", "Hello"]
    copy = await sessions.import_(await sessions.export(one))
    assert {session.id for session in await sessions.list()} == {"one", fork.id, copy.id}
    page = await sessions.list(limit=2)
    assert page.has_more
    assert len((await sessions.list(after=page.last_id)).sessions) == 1
    assert await sessions.cancel(one) is False
    await sessions.delete(one)
    with pytest.raises(APIStatusError) as caught:
        await sessions.get(one)
    assert (caught.value.status, caught.value.code) == (404, "session_not_found")
    with pytest.raises(APIStatusError) as caught:
        await sessions.create(id=fork.id)
    assert (caught.value.status, caught.value.code) == (409, "session_exists")


async def test_what_is_refused_is_told(site: Site, client: Lmserve) -> None:
    with pytest.raises(APIStatusError) as caught:
        await client.respond("hi", temperature=9)
    assert (caught.value.status, caught.value.param) == (400, "temperature")
    with pytest.raises(APIStatusError) as caught:
        await client.respond("hi", session="nowhere")
    assert caught.value.status == 404
    site.fake.will_fail("out of luck", "Hel")
    answer = await client.respond("hi")
    with pytest.raises(APIStreamError, match="out of luck"):
        await answer.text()
    assert (await answer.response()).status == "failed"


async def test_a_key_is_needed(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        site = Site(tmp_path, stack)
        site.api_keys = (KEY,)
        await site.start()
        stack.push_async_callback(site.stop)
        for websocket in (True, False):
            stranger = await site.client(api_key="wrong", websocket=websocket)
            with pytest.raises(APIStatusError) as caught:
                await stranger.sessions.list()
            assert caught.value.status == 401
            with pytest.raises(APIStatusError) as caught:
                await stranger.respond("hi")
            assert caught.value.status == 401
            friend = await site.client(api_key=KEY, websocket=websocket)
            assert list(await friend.sessions.list()) == []


async def test_several_at_once_on_one_connection(site: Site, socket_client: Lmserve) -> None:
    async def ask(n: int) -> str:
        answer = await socket_client.respond(f"story {n}", max_output_tokens=n)
        return await answer.text()

    texts = await asyncio.gather(*map(ask, range(1, 17)))
    assert [len(text.split()) for text in texts] == list(range(1, 17))
    assert socket_client.num_connections == 1


async def test_more_than_a_connection_may_have(site: Site, socket_client: Lmserve) -> None:
    answers = await asyncio.gather(
        *(socket_client.respond("hi", max_output_tokens=2) for _ in range(40))
    )
    texts = {await answer.text() for answer in answers}
    assert len(texts) == 1


async def test_cancel(site: Site, client: Lmserve) -> None:
    site.fake.will_hang("Once", " upon")
    answer = await client.respond("a story")
    await heard(answer, "Once upon")
    await answer.cancel()
    assert await answer.text() == "Once upon"
    assert (await answer.response()).status == "cancelled"
    assert (await answer.response()).text == "Once upon"


async def test_update(site: Site, client: Lmserve) -> None:
    site.fake.will_hang("Once", " upon")
    answer = await client.respond("a story")
    await heard(answer, "Once upon")
    await answer.update(max_output_tokens=40)
    assert site.fake.updates[0].sampling.max_tokens == 40
    told = [event async for event in _until(answer, "session.updated")][-1]
    assert told.data["changes"] == {"max_output_tokens": 40}
    with pytest.raises(APIStatusError) as caught:
        await answer.update(temperature=-1.0)
    assert caught.value.status == 400
    await answer.cancel()


async def _until(answer: Any, type: str) -> AsyncIterator[Any]:
    async for event in answer.events():
        yield event
        if event.type == type:
            return


async def test_steer_goes_on_in_the_same_loop(site: Site, client: Lmserve) -> None:
    site.fake.will_hang("Once", " upon").will_say("In", " short")
    answer = await client.respond("a story")
    first = answer.id
    told: dict[str, str] = {}

    async def read() -> None:
        async for piece in answer:
            told[piece.response_id] = told.get(piece.response_id, "") + piece

    reader = asyncio.create_task(read())
    await heard(answer, "Once upon")
    steered = await answer.steer("shorter!")
    await reader
    assert (steered.response_id, steered.successor_id) == (first, answer.id)
    assert answer.ids == [first, answer.id]
    assert told == {first: "Once upon", answer.id: "In short"}
    assert (await answer.response()).text == "In short"
    assert answer.session is not None
    line = await client.sessions.messages(answer.session)
    assert [message.text for message in line] == ["a story", "Once upon", "shorter!", "In short"]
    with pytest.raises(SteerFailed) as caught:
        await answer.steer("too late")
    assert caught.value.input == "too late"


async def test_a_draft_is_told(site: Site, client: Lmserve) -> None:
    session = await client.sessions.create()
    draft = client.draft(session)
    for text in ("What is", "What is the cap", "What is the caq", "What is the capital of Fran"):
        draft.set(text)
        await draft.flush()
    answer = await client.respond("What is the capital of France?", session=session)
    assert await answer.text()
    draft.set("And")
    await draft.flush()


# --- faults -------------------------------------------------------------------------------


async def test_no_token_is_lost_or_doubled(site: Site, client: Lmserve) -> None:
    """Each connection breaks after some bytes; every transcript equals its uncut twin."""
    chance = random.Random(SEED)
    lengths = [chance.randrange(5, 80) for _ in range(12)]
    twins = [await (await client.respond("hi", max_output_tokens=n)).text() for n in lengths]
    before = site.proxy.num_connections
    site.proxy.cuts = iter([chance.randrange(1, 12_000) for _ in range(40)])
    site.proxy.cut()

    async def ask(n: int) -> tuple[str, list[int]]:
        answer = await client.respond("hi", max_output_tokens=n)
        text = await answer.text()
        return text, [event.sequence_number async for event in answer.events()]

    told = await asyncio.gather(*map(ask, lengths))
    assert [text for text, _ in told] == twins
    assert all(numbers == list(range(len(numbers))) for _, numbers in told)
    assert site.proxy.num_connections > before + 3
    assert len(site.fake.submits) == 2 * len(lengths)


async def test_nothing_is_said_twice(site: Site, client: Lmserve) -> None:
    """The connection breaks before the server could say that it has taken the turn on."""
    session = await client.sessions.create(id="talk")
    site.proxy.cut()
    site.proxy.cuts = iter([HANDSHAKE_BYTES, HANDSHAKE_BYTES])
    site.fake.will_say("Hello")
    answer = await client.respond("hi", session=session)
    assert await answer.text() == "Hello"
    assert len(site.fake.submits) == 1
    assert len(await client.sessions.messages(session, tree=True)) == 2


async def test_a_cut_while_it_is_steered(site: Site, socket_client: Lmserve) -> None:
    site.fake.will_hang("Once", " upon").will_say("In", " short")
    answer = await socket_client.respond("a story")
    await heard(answer, "Once upon")
    steering = asyncio.create_task(answer.steer("shorter!"))
    await asyncio.sleep(0)  # it is sent, perhaps
    site.proxy.cut()
    steered = await steering
    assert await answer.text() == "Once upon" + "In short"
    assert steered.successor_id == answer.id
    assert answer.session is not None
    assert len(await socket_client.sessions.messages(answer.session, tree=True)) == 4


async def test_sessions_made_while_it_breaks(site: Site, socket_client: Lmserve) -> None:
    site.proxy.cuts = iter([HANDSHAKE_BYTES])
    made = await socket_client.sessions.create(title="One")
    assert [session.id for session in await socket_client.sessions.list()] == [made.id]


async def test_an_append_is_not_repeated(site: Site, socket_client: Lmserve) -> None:
    session = await socket_client.sessions.create()
    site.proxy.cut()
    site.proxy.cuts = iter([HANDSHAKE_BYTES])
    with pytest.raises(APIConnectionError):
        await socket_client.sessions.append(session, [{"role": "user", "content": "hi"}])


async def test_http_where_there_can_be_no_websocket(site: Site, socket_client: Lmserve) -> None:
    site.fake.will_hang("Once", " upon").will_say("In short")
    answer = await socket_client.respond("a story")
    await heard(answer, "Once upon")
    site.proxy.upgrades = False
    site.proxy.cut()
    assert len(list(await socket_client.sessions.list())) == 1
    await answer.steer("shorter!")
    assert await answer.text() == "Once upon" + "In short"
    assert [session.id for session in await socket_client.sessions.list()] == [answer.session]
    assert socket_client.num_connections == 1


async def test_an_outage_is_told_in_the_end(site: Site) -> None:
    for websocket in (True, False):
        client = await site.client(reconnect_within_s=0.2, websocket=websocket)
        site.fake.will_hang("Once")
        answer = await client.respond("a story")
        await heard(answer, "Once")
        site.proxy.down = True
        site.proxy.cut()
        with pytest.raises(APIConnectionError):
            await answer.text()
        with pytest.raises(APIConnectionError):
            await client.sessions.list()
        site.proxy.down = False
        assert (await client.sessions.get(str(answer.session))).running == (answer.id,)
        found = await client.answer(answer.id)
        await heard(found, "Once")
        await found.cancel()


async def test_a_server_that_restarts(site: Site, client: Lmserve) -> None:
    site.fake.will_hang("Once", " upon")
    answer = await client.respond("a story")
    await heard(answer, "Once upon")
    site.proxy.down = True
    await site.stop()
    await site.start()
    site.proxy.down = False
    site.proxy.cut()
    with pytest.raises(AnswerInterrupted) as caught:
        await answer.text()
    assert caught.value.response.text == "Once upon"
    site.fake.will_say(" a time")
    rest = await client.respond(continue_=caught.value.response)
    assert await rest.text() == "Once upon a time"
    line = await client.sessions.messages(str(rest.session))
    assert [message.text for message in line][1:] == ["Once upon a time"]


async def test_a_connection_that_went_silent(site: Site) -> None:
    client = await site.client(silence_s=0.1)
    site.fake.will_hang("Once", " upon").will_say("In short")
    answer = await client.respond("a story")
    await heard(answer, "Once upon")
    site.proxy.stall()
    await answer.steer("shorter!")
    assert await answer.text() == "Once uponIn short"
    assert client.num_connections == 2
    assert len(site.fake.submits) == 2


async def test_a_closed_client(site: Site, client: Lmserve) -> None:
    site.fake.will_hang("Once")
    answer = await client.respond("a story")
    await client.aclose()
    with pytest.raises(APIConnectionError):
        await answer.text()
    with pytest.raises(APIConnectionError):
        await client.respond("more")


async def test_unknown_bytes_of_proxies(site: Site) -> None:
    """Sockets that are let through and then broken: HTTP, after some tries."""
    client = await site.client()
    site.proxy.cuts = repeat(HANDSHAKE_BYTES, 3)
    site.fake.will_say("Hello")
    answer = await client.respond("hi")
    assert await answer.text() == "Hello"
    assert len(site.fake.submits) == 1
