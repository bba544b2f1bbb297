"""One answer, while it is made and after."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Union

from lmserve_client import objects
from lmserve_client.errors import APIError, APIResponseError, APIStreamError
from lmserve_client.lane import Lane, Steering
from lmserve_client.link import Link
from lmserve_client.objects import AnswerInterrupted, Event, Piece, Response, Steered
from lmserve_client.verbs import CANCEL, CHANGE, given

Input = Union[str, Sequence[Mapping[str, Any]]]

# The reasons to be incomplete that are neither what was asked for nor what a person did.
INTERRUPTIONS = ("server_restart", "server_shutdown", "abandoned", "deadline")


class Answer:
    """`async for piece in answer` gives its text as it is made. All that came is kept: it may be
    read any number of times, by any number of readers, whole (`text`) or as events.

    An answer that is steered goes on with its successor: the same loop reads on, and `id` is the
    successor's from then on. Nothing need be read, and leaving a loop stops nothing: `cancel`
    does."""

    def __init__(self, link: Link, lane: Lane):
        self._link = link
        self._lane = lane

    @property
    def id(self) -> str:
        """Of the response that is being made, or was made last."""
        assert self._lane.response_id is not None, "it is only handed out once it has an id"
        return self._lane.response_id

    @property
    def ids(self) -> list[str]:
        """Of all its responses: more than one where it was steered."""
        return list(dict.fromkeys(id for id, _ in self._lane.events)) or [self.id]

    @property
    def session(self) -> str | None:
        """The id of the session that it is a turn of."""
        return objects.response(self._lane.response).session if self._lane.response else None

    @property
    def ended(self) -> bool:
        return self._lane.ended

    @property
    def reused_tokens(self) -> int | None:
        """How many tokens of its prompt were not run again; None: not told yet."""
        usage = objects.response(self._lane.response).usage if self._lane.response else None
        return None if usage is None else usage.reused_tokens

    async def events(self) -> AsyncIterator[Event]:
        """All events, from the first on. Raises only where the server can no longer be heard."""
        async for _, event in self._told():
            yield event

    async def __aiter__(self) -> AsyncIterator[Piece]:
        """Raises APIStreamError where the answer failed, AnswerInterrupted where the server cut
        it short."""
        async for response_id, event in self._told():
            if event.text:
                yield Piece(event.text, response_id)
        self._check()

    async def text(self) -> str:
        """All of it, once it has ended."""
        return "".join([piece async for piece in self])

    async def response(self) -> Response:
        """The response that ended it, whatever its status."""
        async for _ in self._told():
            pass
        if self._lane.response is None:
            raise APIResponseError("the answer ended before its first event")
        return objects.response(self._lane.response)

    async def cancel(self) -> Response:
        """Stops it at once; what was said is kept."""
        return objects.response(await self._link.call(CANCEL, {"response_id": self.id}))

    async def update(
        self,
        *,
        max_output_tokens: int | None = None,
        temperature: float | None = None,
        stop: str | Sequence[str] | None = None,
    ) -> Response:
        """Changes its settings from the next token on."""
        changes = given(
            {
                "max_output_tokens": max_output_tokens,
                "temperature": temperature,
                "stop": stop if stop is None or isinstance(stop, str) else list(stop),
            }
        )
        told = await self._link.call(CHANGE, {"response_id": self.id, **changes})
        return objects.response(told)

    async def steer(self, input: Input) -> Steered:
        """Says something while it speaks. Returns when that is being answered; raises SteerFailed
        where it cannot be, because the answer has ended, say."""
        steering = Steering(self.id, input if isinstance(input, str) else list(input))
        if self._lane.ended:
            raise objects.SteerFailed(
                "response_already_completed", "the answer has ended: say it next", input
            )
        await self._link.steer(self._lane, steering)
        return await asyncio.shield(steering.settled)

    async def _told(self) -> AsyncIterator[tuple[str, Event]]:
        lane, at = self._lane, 0
        while True:
            while at < len(lane.events):
                at += 1
                yield lane.events[at - 1]
            if lane.ended:
                break
            await lane.changed()
        if lane.error is not None:
            raise lane.error

    def _check(self) -> None:
        error = failure(objects.response(self._lane.response)) if self._lane.response else None
        if error is not None:
            raise error


def failure(response: Response) -> APIError | None:
    """What its end says beside its text."""
    if response.status == "failed":
        error = response.raw.get("error") or {}
        message = str(error.get("message") or "the answer failed")
        return APIStreamError(
            message, code=error.get("code"), type=error.get("type"), body=response.raw
        )
    return AnswerInterrupted(response) if response.reason in INTERRUPTIONS else None
