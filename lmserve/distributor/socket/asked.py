"""What a node was asked on a connection, until it has answered: told to its client where the node
is lost before."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from lmserve.distributor.socket.events import LANED, Response, Seen, response_in
from lmserve.distributor.wish import Wish

CLOSING = ("response.completed", "response.incomplete", "response.failed")


@dataclass(slots=True, eq=False)
class Asked:
    """An event of the client."""

    type: str
    event_id: str | None
    lane: str | None
    wish: Wish
    response: str | None = None  # that is shown
    goes_on: bool = False  # that has ended, and another follows it
    quiet: bool = False  # nothing more may come

    @property
    def is_laned(self) -> bool:
        return self.type in LANED


class Ledger:
    """Of one node, in the order of asking."""

    def __init__(self) -> None:
        self._open: list[Asked] = []

    def __iter__(self) -> Iterator[Asked]:
        return iter(list(self._open))

    def __len__(self) -> int:
        return len(self._open)

    @property
    def num_answers(self) -> int:
        """Being made, or waited for."""
        return sum(asked.is_laned and not asked.quiet for asked in self._open)

    def add(self, asked: Asked) -> None:
        if asked.type == "session.resume":  # in place of one of which no end was seen
            for old in self._on(asked.lane):
                if old.quiet and old.response == asked.response:
                    self.drop(old)
        self._open.append(asked)

    def drop(self, asked: Asked) -> None:
        if asked in self._open:
            self._open.remove(asked)

    def uses(self, lane: str | None) -> bool:
        """Whether something is shown on this lane, or will be."""
        return any(not asked.quiet for asked in self._on(lane))

    def saw(self, seen: Seen) -> tuple[Asked | None, Response | None]:
        """What this event of the node was about, where that is of matter here."""
        kind = seen.type
        if not isinstance(kind, str):
            return None, None
        if kind == "response.created":
            return self._begun(seen)
        if kind in CLOSING:
            return self._closed(seen)
        if kind == "error":
            return self._refused(seen), None
        if kind.startswith("response.steer."):
            return self._steered(seen)
        if kind.startswith("session.") and kind.endswith(".done"):
            return self._done(seen, kind.removesuffix(".done"))
        if kind == "stream.event" and bytes(seen.data) == b"null":
            for asked in self._on(seen.stream_id):
                if asked.response == seen.response_id:
                    self.drop(asked)
                    return asked, None
        return None, None

    # --- one of these for each kind of event ------------------------------------------

    def _begun(self, seen: Seen) -> tuple[Asked | None, Response]:
        response = response_in(seen.response)
        mine = self._on(seen.stream_id)
        asked = next((each for each in mine if each.response == response.id), None)
        if asked is None:
            asked = next((each for each in mine if each.goes_on or each.response is None), None)
        if asked is not None:
            for earlier in mine[: mine.index(asked)]:  # a lane answers one after another
                self.drop(earlier)
            asked.response, asked.goes_on, asked.quiet = response.id, False, False
        return asked, response

    def _closed(self, seen: Seen) -> tuple[Asked | None, Response]:
        response = response_in(seen.response)
        for asked in self._on(seen.stream_id):
            if asked.response == response.id:
                if response.is_steered:
                    asked.goes_on = True
                else:
                    self.drop(asked)
                return asked, response
        return None, response

    def _refused(self, seen: Seen) -> Asked | None:
        found = [
            asked
            for asked in self._open
            if asked.event_id == seen.event_id
            and (not asked.is_laned or asked.lane == seen.stream_id)
        ]
        if not found:
            return None
        waiting = [asked for asked in found if asked.response is None]
        late = seen.status == 429 and len(found) > 1  # there was no room for it behind the others
        asked = found[-1] if late else (waiting or found)[0]
        self.drop(asked)
        return asked

    def _steered(self, seen: Seen) -> tuple[Asked | None, Response]:
        steer = response_in(seen.steer)
        waits = seen.type in ("response.steer.failed", "response.steer.pending")
        for asked in self:
            if waits and asked.goes_on and asked.response == steer.previous_response_id:
                self.drop(asked)  # nothing follows it by itself
        for asked in self:
            id = steer.previous_response_id
            if asked.type == "response.steer" and asked.response == id:
                self.drop(asked)
                return asked, steer
        return None, steer

    def _done(self, seen: Seen, kind: str) -> tuple[Asked | None, Response | None]:
        for asked in self._open:
            if asked.type == kind and asked.event_id == seen.event_id:
                result = response_in(seen.result)
                if kind == "session.resume":
                    asked.quiet = result.starting_after == result.last
                else:
                    self.drop(asked)
                return asked, result
        return None, None

    def _on(self, lane: str | None) -> list[Asked]:
        return [asked for asked in self._open if asked.is_laned and asked.lane == lane]
