"""Any sequence of WebSocket events: each is answered as promised or by one error, the connection
goes on, and nothing is held when all is over."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import aiohttp
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.hardening.real import RealServer
from tests.server.sockets import PATH

# servers draw at random in their threads, which hypothesis takes for the strategy's doing
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module")

ENDS = ("response.completed", "response.incomplete", "response.failed")
SESSIONS, LANES, REPLAYS = ("one", "two"), (None, "left", "right"), "replays"

sessions = st.sampled_from(SESSIONS)
lanes = st.sampled_from(LANES)
#: Stands for the id of the answer that came so many before the last one, or for none there is.
answers = st.integers(0, 2).map(lambda back: f"@{back}") | st.just("resp_none")
places = st.sampled_from(["root", "msg_1", "msg_0", "no"])
inputs = st.sampled_from(["hi", "what now? " * 20, [{"role": "user", "content": "hm"}], [], 7])


def event(type: str, optional: Any = None, **fields: Any) -> Any:
    return st.fixed_dictionaries({"type": st.just(type), **fields}, optional=optional or {})


CREATE = event(
    "response.create",
    {
        "conversation": sessions,
        "previous_response_id": answers,
        "store": st.booleans(),
        "generate": st.booleans(),
        "after": places,
        "temperature": st.sampled_from([0, 1, 3]),
        "text": st.just({"format": {"type": "json_schema", "name": "x", "schema": True}}),
        "background": st.just(True),
    },
    input=inputs,
    max_output_tokens=st.integers(1, 6),
    stream_id=lanes,
)
CALLS = st.one_of(
    event("session.create", id=sessions),
    event("session.get", session=sessions),
    event("session.list", {"limit": st.sampled_from([1, 0, "x"])}),
    event("session.messages", {"at": places, "tree": st.booleans()}, session=sessions),
    event("session.append", {"after": places}, session=sessions,
          messages=st.sampled_from([[{"role": "user", "content": "x"}], [], [{}]])),
    event("session.fork", {"at": places}, session=sessions, id=sessions),
    event("session.rollback", session=sessions, to=places),
    event("session.export", session=sessions),
    event("session.import", id=sessions, session=st.just(
        {"format": "lmserve.session", "version": 1, "messages": []}) | st.just({})),
    event("session.delete", session=sessions),
    event("session.cancel", {"session": sessions, "response_id": answers}),
    event("session.update", {"session": sessions, "response_id": answers},
          max_output_tokens=st.integers(0, 9)),
    event("session.draft", {"append": st.just(" now")}, session=sessions,
          text=st.sampled_from(["wh", "what is it that we", ""])),
    event("session.resume", {"starting_after": st.sampled_from([-1, 0, 3, 10**6])},
          response_id=answers, stream_id=st.just(REPLAYS)),
    event("no.such"),
    event("session.get"),
)  # fmt: skip
STEER = event("response.steer", previous_response_id=answers, input=inputs)
NOISE = st.sampled_from([b"", b"{", b"null", b'{"type":"\xff"}', b"[]"]) | st.binary(max_size=20)
STEPS = st.lists(
    st.one_of(
        CREATE, CALLS, STEER, NOISE,
        NOISE.map(bytearray),  # as a binary frame
        st.sampled_from(["wait", "wait", "ping", "close", "vanish"]),
    ),
    max_size=14,
)  # fmt: skip


class Talk:
    """One connection: what was sent, and what has come."""

    def __init__(self, ws: Any, known: list[str]):
        self.ws = ws
        self.known = known  # ids of answers, the newest last
        self.sent: dict[str, str] = {}  # types by event_id, of what is answered by it
        self.creates: set[str] = set()
        self.told: Counter[str] = Counter()  # by event_id
        self.errors = 0  # of what had no event_id
        self.noise = 0
        self.steers, self.steered = 0, 0
        self.begun: dict[str, int] = {}  # ends, by answer
        self.last: dict[str, int] = {}  # sequence numbers
        self.lanes_done: set[str] = set()

    async def send(self, given: Any) -> None:
        if isinstance(given, bytes | bytearray):
            self.noise += 1
            binary = isinstance(given, bytearray)
            kind = aiohttp.WSMsgType.BINARY if binary else aiohttp.WSMsgType.TEXT
            await self.ws.send_frame(bytes(given), kind)
            return
        fields = {name: self._meant(value) for name, value in given.items() if value is not None}
        if fields["type"] == "response.steer":
            self.steers += 1
        else:
            fields["event_id"] = id = f"e{len(self.sent)}"
            self.sent[id] = fields["type"]
            if fields["type"] == "response.create":
                self.creates.add(id)
        await self.ws.send_str(orjson.dumps(fields).decode())

    def _meant(self, value: Any) -> Any:
        if not (isinstance(value, str) and value.startswith("@")):
            return value
        return [*["resp_none"] * 3, *self.known][-1 - int(value[1:])]

    async def receive(self) -> None:
        message = await self.ws.receive(timeout=30)
        assert message.type is aiohttp.WSMsgType.TEXT, message
        self._take(orjson.loads(message.data))

    def _take(self, told: dict[str, Any]) -> None:
        kind, id = told["type"], told.get("event_id")
        if kind == "error":
            assert told["status"] < 500 and told["error"]["message"], told
            if id is None:
                self.errors += 1
            else:
                self.told[id] += 1
        elif id is not None:
            assert kind == f"{self.sent[id]}.done", told
            self.told[id] += 1
        elif kind.startswith("response.steer."):
            self.steered += kind in ("response.steer.accepted", "response.steer.failed")
        elif told.get("stream_id") != REPLAYS:
            self._take_of_answer(kind, told)

    def _take_of_answer(self, kind: str, told: dict[str, Any]) -> None:
        response = told.get("response")
        if response is None:
            return
        id = response["id"]
        if kind == "response.created":
            assert id not in self.begun
            self.begun[id] = 0
            self.known.append(id)
        assert told["sequence_number"] > self.last.get(id, -1)
        self.last[id] = told["sequence_number"]
        if kind in ENDS:
            self.begun[id] += 1
            self.lanes_done.add(response["metadata"].get("last", ""))

    async def settle(self) -> None:
        """All that was asked is over: each lane does what comes last once it has done the rest."""
        for lane in LANES:
            await self._end_lane(lane)
        calls = self.sent.keys() - self.creates
        while not calls <= self.told.keys() or self.errors < self.noise:
            await self.receive()
        while self.steered < self.steers:
            await self.receive()
        assert set(self.told.values()) <= {1}, self.told
        assert set(self.begun.values()) <= {1}, self.begun
        refused = len(self.creates & self.told.keys())
        assert len(self.begun) >= len(self.creates) - refused

    async def _end_lane(self, lane: str | None) -> None:
        name = f"{lane} {len(self.sent)}"
        last = {"type": "response.create", "input": "x", "max_output_tokens": 1, "store": False}
        while True:
            before = len(self.sent)
            await self.send(last | {"stream_id": lane, "metadata": {"last": name}})
            while name not in self.lanes_done and not self.told[f"e{before}"]:
                await self.receive()
            if name in self.lanes_done:
                return


async def play(real: RealServer, http: aiohttp.ClientSession, steps: list[Any]) -> None:
    known: list[str] = []
    talk = Talk(await http.ws_connect(PATH), known)
    for step in steps:
        if step == "wait":
            await talk.settle()
        elif step == "ping":
            await talk.ws.ping(b"?")
        elif step in ("close", "vanish"):
            if step == "vanish":
                talk.ws._response.connection.transport.abort()
            await talk.ws.close()
            talk = Talk(await http.ws_connect(PATH), known)
        else:
            await talk.send(step)
    await talk.settle()
    for session in SESSIONS:
        await talk.send({"type": "session.cancel", "session": session})
        await talk.send({"type": "session.delete", "session": session})
    await talk.settle()
    await talk.ws.close()


LIMITS = settings(
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@settings(LIMITS, max_examples=25, derandomize=True)
@given(steps=STEPS)
async def test_any_events(real: RealServer, http: aiohttp.ClientSession, steps: list[Any]) -> None:
    await play(real, http, steps)


@pytest.mark.slow
@pytest.mark.timeout(900)
@settings(LIMITS, max_examples=1000)
@given(steps=STEPS)
async def test_very_many_events(
    real: RealServer, http: aiohttp.ClientSession, steps: list[Any]
) -> None:
    async with asyncio.timeout(60):
        await play(real, http, steps)
