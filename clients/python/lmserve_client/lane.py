"""One answer as it comes: its events in order, each once, whichever connections brought them.

A lane outlives connections. The number of the last event says where the next connection goes on.
Where the answer is steered, the response that goes on with it follows on the same lane, numbered
from 0 again.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, Callable

from lmserve_client.errors import APIError, APIStreamError
from lmserve_client.objects import Event, Steered, SteerFailed, event
from lmserve_client.types import JSONObject

ENDINGS = ("response.completed", "response.incomplete", "response.failed")


class Steering:
    """One input said in mid-answer."""

    def __init__(self, response_id: str, input: Any):
        self.response_id = response_id
        self.input = input
        self.sent = False  # perhaps the server has it
        self.id: str | None = None  # once the server owns it: it is not sent again
        self.settled: asyncio.Future[Steered] = asyncio.get_running_loop().create_future()
        self.settled.add_done_callback(_looked_at)


class Lane:
    def __init__(self, id: str, body: JSONObject, response_id: str | None = None):
        self.id = id  # the `stream_id` of all its connections
        self.body = body  # of the request; its idempotency_key makes it safe to send again
        self.response_id = response_id  # what is being told; None: nothing was acknowledged yet
        self.last = -1  # the number of its last event
        self.events: list[tuple[str, Event]] = []  # all of them, with whose they are
        self.response: JSONObject | None = None  # as it was told last
        self.over = False  # the last event has come; a successor may follow
        self.ended = False  # nothing follows
        self.error: APIError | None = None  # why it ended without a last event
        self.steers: deque[Steering] = deque()  # unsettled, in the order of their sending
        # a successor must follow
        self.on_over: Callable[[Lane], None] = lambda lane: None
        self._text: list[str] = []  # of the response that is being told
        self._changed = asyncio.Event()

    async def changed(self) -> None:
        """Returns at the next event or at the end. Any number may wait."""
        self._changed.clear()
        await self._changed.wait()

    # --- what connections bring ----------------------------------------------------------

    def take(self, item: JSONObject) -> None:
        """An event. One that has come before is passed over."""
        if self.ended:
            return
        told = event(item)
        if told.type == "response.created" and item["response"]["id"] != self.response_id:
            self._begin(item["response"]["id"])
        elif told.type == "response.steer.failed" and not item["steer"].get("id"):
            self._on_steer_failed(item)  # told to the asker alone: it has no place in the stream
            return
        if told.sequence_number <= self.last:
            return
        self.last = told.sequence_number
        self._keep(told)
        self._react(told.type, item)
        self._changed.set()

    def take_whole(self, response: JSONObject) -> None:
        """The answer as it is by now, from where its events can no longer be had: what is new of
        its text, and its end."""
        if self.ended or self.over:
            return
        said, whole = "".join(self._text), _text_of(response)
        if len(whole) > len(said) and whole.startswith(said):
            self._make("response.output_text.delta", delta=whole[len(said) :])
        status = response.get("status")
        if status in ("queued", "in_progress"):
            self.response = response
        else:
            name = "incomplete" if status == "cancelled" else status
            self._make(f"response.{name}", response=response)

    def follow(self, successor_id: str) -> None:
        """What goes on with it was found otherwise than in its events."""
        self._begin(successor_id)

    def fail(self, error: APIError) -> None:
        """Nothing more can be had."""
        if not self.ended:
            self.error = error
            self.end()

    def give_up(self, steering: Steering, error: APIError) -> None:
        """Unless the server owns it by now."""
        if steering in self.steers and steering.id is None:
            self.steers.remove(steering)
            if not steering.settled.done():
                steering.settled.set_exception(error)

    def end(self) -> None:
        self.ended = True
        for steering in self.steers:
            if not steering.settled.done():
                why = self.error or SteerFailed(
                    "response_already_completed", "the answer had ended before", steering.input
                )
                steering.settled.set_exception(why)
        self.steers.clear()
        self._changed.set()

    # --- the events ------------------------------------------------------------------------

    def _begin(self, response_id: str) -> None:
        self.response_id = response_id
        self.last = -1
        self.over = False
        self._text.clear()

    def _keep(self, told: Event) -> None:
        assert self.response_id is not None
        self.events.append((self.response_id, told))
        self._text.append(told.text)

    def _make(self, type: str, **fields: Any) -> None:
        self.last += 1
        item = {"type": type, "sequence_number": self.last, **fields}
        self._keep(event(item))
        self._react(type, item)
        self._changed.set()

    def _react(self, type: str, item: JSONObject) -> None:
        if isinstance(item.get("response"), dict):
            self.response = item["response"]
        if type in ENDINGS:
            self._on_end()
        elif type == "error":  # a stream that broke
            error = item.get("error") or item
            said = {name: error.get(name) for name in ("param", "code", "type")}
            self.fail(APIStreamError(str(error.get("message")), **said, body=item))
        elif type == "response.steer.accepted":
            for steering in self.steers:
                if steering.id is None:
                    steering.id = item["steer"]["id"]
                    break
        elif type == "response.steer.pending":
            steer = item["steer"]
            self._settle(Steered(steer["id"], steer["previous_response_id"], None, None))
        elif type == "response.steer.failed":
            self._on_steer_failed(item)
        elif type == "session.steer.applied":
            self._settle(
                Steered(
                    item["steer_id"],
                    item["response_id"],
                    item["successor_id"],
                    item.get("token_index"),
                )
            )

    def _on_end(self) -> None:
        """A successor follows where it was steered, or owns input that it will answer."""
        self.over = True
        assert self.response is not None
        details = self.response.get("incomplete_details") or {}
        steered = details.get("reason") == "steered"
        if steered or any(steering.id for steering in self.steers):
            self.on_over(self)
        else:
            self.end()

    def _settle(self, steered: Steered) -> None:
        for steering in self.steers:
            if steering.id in (None, steered.id):
                self.steers.remove(steering)
                if not steering.settled.done():
                    steering.settled.set_result(steered)
                return

    def _on_steer_failed(self, item: JSONObject) -> None:
        steer, error = item["steer"], item["error"]
        for steering in self.steers:
            if steering.id in (None, steer.get("id")):
                self.steers.remove(steering)
                if not steering.settled.done():
                    failed = SteerFailed(error.get("code"), error["message"], steering.input)
                    steering.settled.set_exception(failed)
                break
        if self.over:
            self._on_end()


def _text_of(response: JSONObject) -> str:
    parts = (part for item in response.get("output") or () for part in item.get("content") or ())
    return "".join(part.get("text", "") for part in parts if part.get("type") == "output_text")


def _looked_at(settled: asyncio.Future[Steered]) -> None:
    """An exception that nobody awaits is no fault of the program."""
    if not settled.cancelled():
        settled.exception()
