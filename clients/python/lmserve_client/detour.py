"""What goes over HTTP: answers whose connection is of no use, and all where there is none."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from lmserve_client.connection import Call, settle
from lmserve_client.errors import APIConnectionError, APIError
from lmserve_client.lane import Lane, Steering
from lmserve_client.rest import Rest

DOUBT_S = 5.0  # until it is told that nobody knows of an input whether it was taken on


class Detour:
    """Owns the tasks of all that it does."""

    def __init__(self, rest: Rest):
        self._rest = rest
        self._tasks: set[asyncio.Task[None]] = set()

    async def aclose(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def follow(self, lane: Lane) -> None:
        """Its events, to its end."""
        self._start(self._to_its_end(lane, self._rest.follow(lane)))

    def recover(self, lane: Lane) -> None:
        """What is known of it, to its end: its next events cannot be had."""
        self._start(self._to_its_end(lane, self._rest.recover(lane)))

    def steer(self, lane: Lane, steering: Steering) -> None:
        steering.sent = True
        self._start(self._steer(lane, steering))

    def call(self, call: Call) -> None:
        self._start(self._call(call))

    async def _to_its_end(self, lane: Lane, work: Coroutine[Any, Any, None]) -> None:
        for steering in list(lane.steers):
            if not steering.sent:
                self.steer(lane, steering)
            elif steering.id is None:
                self._start(self._doubt(lane, steering))
        try:
            await work
        except APIError as error:
            lane.fail(error)
        finally:
            lane.fail(client_closed())  # unless it has ended

    async def _steer(self, lane: Lane, steering: Steering) -> None:
        try:
            told = await self._rest.steer(steering.response_id, steering.input)
            steering.id = steering.id or told.get("id")
        except APIConnectionError:
            await self._doubt(lane, steering)
        except APIError as error:
            lane.give_up(steering, error)

    async def _doubt(self, lane: Lane, steering: Steering) -> None:
        """Whether it was taken on is told by the answer's events, or not at all."""
        await asyncio.sleep(DOUBT_S)
        reason = "the connection broke: perhaps the input was taken on, perhaps not"
        lane.give_up(steering, APIConnectionError(reason))

    async def _call(self, call: Call) -> None:
        try:
            settle(call, await self._rest.call(call.verb, call.fields))
        except APIError as error:
            settle(call, error)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def client_closed() -> APIConnectionError:
    return APIConnectionError("the client was closed")
