"""One WebSocket: what is said on it, and whom what comes is for."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Callable

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from lmserve_client.errors import APIError, APIStatusError, told_status
from lmserve_client.lane import Lane, Steering
from lmserve_client.rest import done_before
from lmserve_client.types import JSONObject
from lmserve_client.verbs import Verb

_RESUME = "resume-"  # and the lane's id: the `event_id` of its resumption


@dataclass
class Call:
    verb: Verb
    fields: JSONObject
    answer: asyncio.Future[JSONObject]
    num_sent: int = 0


class Connection:
    """`lanes` and `calls` are the link's, and outlive this. What is sent on a connection that
    breaks is sent again on the next: no failure to send is told."""

    def __init__(
        self,
        socket: ClientConnection,
        lanes: dict[str, Lane],
        calls: dict[str, Call],
        on_lost: Callable[[Lane], None],
        on_other: Callable[[JSONObject], None],
    ):
        self.told: APIError | None = None  # what is wrong with the connection itself
        self._socket = socket
        self._lanes = lanes
        self._calls = calls
        self._on_lost = on_lost  # gets a lane whose events do not come here
        self._on_other = on_other  # gets what is of no lane and no call
        self._attached: set[str] = set()  # lanes that were asked for here
        self._asked: set[str] = set()  # calls, too
        self._resuming: set[str] = set()  # lanes whose resumption is not answered yet
        self._behind: dict[str, int] = {}  # until this event, a lane is told what was missed

    async def listen(self, on_frame: Callable[[], None]) -> None:
        """To its end."""
        for lane in list(self._lanes.values()):
            await self.attach(lane)
        for id, call in list(self._calls.items()):
            await self.ask(id, call)
        with suppress(ConnectionClosed):
            async for frame in self._socket:
                on_frame()
                await self._take(json.loads(frame))

    # --- what is sent --------------------------------------------------------------------

    async def attach(self, lane: Lane) -> None:
        """Its events come here."""
        if lane.id in self._attached:
            return
        self._attached.add(lane.id)
        if lane.response_id is None:
            await self._send(type="response.create", stream_id=lane.id, **lane.body)
            return
        self._resuming.add(lane.id)
        await self._send(
            type="session.resume",
            event_id=_RESUME + lane.id,
            stream_id=lane.id,
            response_id=lane.response_id,
            **({"starting_after": lane.last} if lane.last >= 0 else {}),
        )

    async def ask(self, id: str, call: Call) -> None:
        if id not in self._asked:
            self._asked.add(id)
            call.num_sent += 1
            await self._send(type=call.verb.frame, event_id=id, **call.fields)

    async def say(self, lane: Lane, steering: Steering) -> None:
        """While the lane is being resumed, and catches up, it waits for that: see `_say_again`."""
        waits = lane.id in self._resuming or lane.id in self._behind
        if lane.id in self._attached and not waits:
            steering.sent = True
            await self._send(
                type="response.steer",
                previous_response_id=steering.response_id,
                input=steering.input,
            )

    async def _send(self, **item: Any) -> None:
        with suppress(ConnectionClosed):
            await self._socket.send(json.dumps(item))  # ASCII: half a letter passes, too

    # --- what comes ----------------------------------------------------------------------

    async def _take(self, item: JSONObject) -> None:
        call = self._calls.get(str(item.get("event_id")))
        resumed = self._resumed_lane(item)
        lane = self._lanes.get(str(item.get("stream_id"))) or resumed or self._steered_lane(item)
        kind = item.get("type")
        if call is not None:
            _take_answer(call, item)
        elif kind == "error" and item.get("status") is not None:
            self._on_error(lane, told_status(item["status"], item))
        elif kind == "session.resume.done":
            if resumed is not None:
                await self._on_resumed(resumed, item)
        elif lane is None:
            self._on_other(item)
        else:
            item.pop("stream_id", None)
            await self._tell(lane, item)

    async def _tell(self, lane: Lane, item: JSONObject) -> None:
        lane.take(item)
        if lane.id in self._behind:
            await self._say_again(lane)
        if lane.ended:
            del self._lanes[lane.id]

    def _on_error(self, lane: Lane | None, error: APIStatusError) -> None:
        if lane is None:
            self.told = error
            return
        del self._lanes[lane.id]
        if lane.response_id is None:
            lane.fail(error)
        else:
            self._on_lost(lane)

    async def _on_resumed(self, lane: Lane, item: JSONObject) -> None:
        self._resuming.discard(lane.id)
        if any(steering.id is None for steering in lane.steers):
            self._behind[lane.id] = item["result"]["last"]
            await self._say_again(lane)

    async def _say_again(self, lane: Lane) -> None:
        """What was said in mid-answer, and lost: once all events from before have come, it is
        known not to have been taken on."""
        if lane.last < self._behind[lane.id] and not lane.over:
            return
        del self._behind[lane.id]
        for steering in [one for one in lane.steers if one.id is None]:
            await self.say(lane, steering)

    def _resumed_lane(self, item: JSONObject) -> Lane | None:
        event_id = str(item.get("event_id"))
        return self._lanes.get(event_id[len(_RESUME) :]) if event_id.startswith(_RESUME) else None

    def _steered_lane(self, item: JSONObject) -> Lane | None:
        """Of what is told of an input by its answer's id alone."""
        if "stream_id" in item or not str(item.get("type")).startswith("response.steer."):
            return None
        id = item["steer"]["previous_response_id"]
        lanes = self._lanes.values()
        return next((one for one in lanes if any(s.response_id == id for s in one.steers)), None)


def _take_answer(call: Call, item: JSONObject) -> None:
    if item["type"] != "error":
        settle(call, item.get("result") or {})
        return
    error = told_status(item.get("status", 500), item)
    done = done_before(call.verb, call.fields, error) if call.num_sent > 1 else None
    settle(call, error if done is None else done)


def settle(call: Call, told: JSONObject | APIError) -> None:
    if call.answer.done():
        return
    if isinstance(told, APIError):
        call.answer.set_exception(told)
    else:
        call.answer.set_result(told)
