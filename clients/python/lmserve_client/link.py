"""One WebSocket for all answers and calls of a client, made anew whenever it breaks.

    lost ─► wait a little longer each time ─► connect ─► each answer: `session.resume` after its
    last event, or `response.create` again, with the same idempotency_key, where none came ─►
    each call without an answer again, if it may be ─► go on

Where there can be no WebSocket (something on the way refuses it), all goes over HTTP.
"""

from __future__ import annotations

import asyncio
import itertools
from typing import Callable

from websockets.asyncio.client import connect
from websockets.exceptions import InvalidHandshake, InvalidStatus, WebSocketException

from lmserve_client.backoff import Backoff
from lmserve_client.base import USER_AGENT
from lmserve_client.connection import Call, Connection, settle
from lmserve_client.detour import Detour, client_closed
from lmserve_client.errors import APIConnectionError, APIError, APIResponseError, told_status
from lmserve_client.lane import Lane, Steering
from lmserve_client.rest import Rest
from lmserve_client.target import Target
from lmserve_client.types import JSONObject
from lmserve_client.verbs import Verb

MAX_FRAME_BYTES = 64 * 2**20
MAX_LANES = 32  # on one connection, as the server has it; more answers go over HTTP
MAX_REFUSALS = 3  # in a row, of an upgrade or right after it: then there is no WebSocket to be had
FAULTS = (1002, 1003, 1007, 1009)  # the server closes so for what it was sent: no use again
DENIED = 1008
NOT_NOW = (429, 503)  # of an upgrade: it may well pass later
SUCCESSOR_S = 2.0  # after the end of an answer that was steered, until it is looked for


class Link:
    """Lives on one loop. A connection is made for the first answer or call."""

    def __init__(self, target: Target, rest: Rest, http_only: bool = False):
        self.http_only = http_only
        self.num_connections = 0  # so far: more than one means that some were lost
        self.on_other: Callable[[JSONObject], None] = lambda item: None  # of no answer, no call
        self._target = target
        self._rest = rest
        self._detour = Detour(rest)
        self._lanes: dict[str, Lane] = {}
        self._calls: dict[str, Call] = {}
        self._names = itertools.count(1)
        self._connection: Connection | None = None
        self._backoff = Backoff(target.reconnect_within_s)
        self._num_refusals = 0
        self._closed = False
        self._runner: asyncio.Task[None] | None = None

    def name(self, kind: str) -> str:
        """A new name for a lane or a call."""
        return f"{kind}{next(self._names)}"

    async def open(self, lane: Lane) -> None:
        """Its events come from now on."""
        self._check_open()
        if self.http_only or len(self._lanes) >= MAX_LANES:
            self._detour.follow(lane)
            return
        self._lanes[lane.id] = lane
        lane.on_over = self._on_over
        if self._connection is not None:
            await self._connection.attach(lane)
        self._keep_going()

    async def call(self, verb: Verb, fields: JSONObject) -> JSONObject:
        self._check_open()
        if self.http_only:
            return await self._rest.call(verb, fields)
        id = self.name("e")
        call = Call(verb, fields, asyncio.get_running_loop().create_future())
        self._calls[id] = call
        try:
            if self._connection is not None:
                await self._connection.ask(id, call)
            self._keep_going()
            return await call.answer
        finally:
            self._calls.pop(id, None)

    async def steer(self, lane: Lane, steering: Steering) -> None:
        self._check_open()
        lane.steers.append(steering)
        if lane.id not in self._lanes:
            self._detour.steer(lane, steering)
        elif self._connection is not None:
            await self._connection.say(lane, steering)

    async def aclose(self) -> None:
        """Ends the connection. Answers go on in the server; here they end."""
        self._closed = True
        if self._runner is not None:
            self._runner.cancel()
            await asyncio.gather(self._runner, return_exceptions=True)
        await self._detour.aclose()
        self._fail_all(client_closed())

    # --- one connection after the other --------------------------------------------------

    def _keep_going(self) -> None:
        """While something waits for it, there is a connection."""
        if self._runner is None or self._runner.done():
            self._runner = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        while self._lanes or self._calls:
            reason = "the server closed the connection"
            try:
                await self._talk()
            except (OSError, asyncio.TimeoutError, WebSocketException, EOFError) as error:
                if self._is_final(error):
                    return
                reason = str(error) or type(error).__name__
            except Exception as error:  # nobody else would tell those who wait
                return self._fail_all(
                    APIResponseError(f"what came or was to be sent is no event: {error!r}")
                )
            if self._num_refusals >= MAX_REFUSALS:
                return self._go_to_http()
            self._fail_unrepeatable(reason)
            delay_s = self._backoff.next()
            if delay_s is None:
                return self._fail_all(APIConnectionError(f"no connection to the server: {reason}"))
            await asyncio.sleep(delay_s)

    async def _talk(self) -> None:
        """One connection, until it is lost."""
        target = self._target
        async with connect(
            target.socket_url,
            additional_headers=target.headers(),
            user_agent_header=USER_AGENT,
            ssl=target.ssl(),
            open_timeout=target.connect_timeout_s,
            close_timeout=1,
            ping_interval=target.silence_s,
            ping_timeout=target.silence_s,
            max_size=MAX_FRAME_BYTES,
            compression=None,
        ) as socket:
            self.num_connections += 1
            self._num_refusals += 1  # until it has told something
            connection = Connection(
                socket, self._lanes, self._calls, self._detour.recover, self.on_other
            )
            self._connection = connection
            try:
                await connection.listen(self._on_frame)
            finally:
                self._connection = None
        self._on_closed(socket.close_code, socket.close_reason, connection.told)

    def _on_frame(self) -> None:
        """It works."""
        self._num_refusals = 0
        self._backoff.reset()

    def _on_closed(self, code: int | None, reason: str | None, told: APIError | None) -> None:
        said = f"the server closed the connection: {reason or f'code {code}'}"
        if code == DENIED:
            self._fail_all(told or APIConnectionError(said))
        elif code in FAULTS:
            self._fail_unacknowledged(told or APIConnectionError(said))
        elif not self._lanes and not self._calls:
            self._num_refusals = 0  # it was idle

    def _is_final(self, error: Exception) -> bool:
        """What a failure to connect says of further tries."""
        if not isinstance(error, InvalidHandshake):
            return False
        if isinstance(error, InvalidStatus) and error.response.status_code in NOT_NOW:
            return False
        self._num_refusals += 1
        if isinstance(error, InvalidStatus):
            response = error.response
            if response.status_code == 401:
                self._fail_all(told_status(401, bytes(response.body or b"")))
                return True
            if response.status_code < 500:
                self._num_refusals = MAX_REFUSALS
        return False

    def _go_to_http(self) -> None:
        self.http_only = True
        for lane in self._lanes.values():
            self._detour.follow(lane)
        self._lanes.clear()
        self._fail_unrepeatable("there is no WebSocket to be had")
        for call in self._calls.values():
            if not call.answer.done():
                self._detour.call(call)
        self._calls.clear()

    def _on_over(self, lane: Lane) -> None:
        """Its successor follows at once, or the server does not know any more that it does."""
        steered = lane.response_id

        def look() -> None:
            if lane.over and lane.response_id == steered and lane.id in self._lanes:
                del self._lanes[lane.id]
                self._detour.recover(lane)

        asyncio.get_running_loop().call_later(SUCCESSOR_S, look)

    # --- ends ----------------------------------------------------------------------------

    def _fail_unrepeatable(self, reason: str) -> None:
        for call in self._calls.values():
            if call.num_sent and not call.verb.repeats:
                settle(call, APIConnectionError(f"it broke before the answer: {reason}"))

    def _fail_unacknowledged(self, error: APIError) -> None:
        """One of these was at fault."""
        for lane in [lane for lane in self._lanes.values() if lane.response_id is None]:
            del self._lanes[lane.id]
            lane.fail(error)
        for call in self._calls.values():
            settle(call, error)

    def _fail_all(self, error: APIError) -> None:
        for lane in self._lanes.values():
            lane.fail(error)
        self._lanes.clear()
        for call in self._calls.values():
            settle(call, error)
        self._calls.clear()

    def _check_open(self) -> None:
        if self._closed:
            raise client_closed()
