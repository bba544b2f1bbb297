"""What a node was asked, and when it has done with it."""

from __future__ import annotations

from typing import Any

import orjson

from lmserve.distributor.socket.asked import Asked, Ledger
from lmserve.distributor.socket.events import seen_in
from lmserve.distributor.wish import Wish


def asked(type: str = "response.create", lane: str | None = None, **fields: Any) -> Asked:
    return Asked(type, fields.pop("event_id", None), lane, Wish(), **fields)


class Told:
    """A ledger that hears events."""

    def __init__(self, *open: Asked) -> None:
        self.ledger = Ledger()
        for each in open:
            self.ledger.add(each)

    def hears(self, type: str, **fields: Any) -> Asked | None:
        return self.ledger.saw(seen_in(orjson.dumps({"type": type, **fields})))[0]

    def begins(self, id: str, lane: str | None = None) -> Asked | None:
        return self.hears("response.created", response={"id": id}, **on(lane))

    def ends(self, id: str, lane: str | None = None, reason: str | None = None) -> Asked | None:
        details = {"reason": reason} if reason else None
        kind = "response.incomplete" if reason else "response.completed"
        response = {"id": id, "incomplete_details": details}
        return self.hears(kind, response=response, **on(lane))


def on(lane: str | None) -> dict[str, str]:
    return {} if lane is None else {"stream_id": lane}


def test_an_answer_ends_with_its_last_event() -> None:
    one, two = asked(), asked(lane="l")
    told = Told(one, two)
    assert told.begins("a") is one
    assert told.hears("response.output_text.delta", delta="x") is None
    assert told.ends("b") is None
    assert told.ends("a") is one
    assert list(told.ledger) == [two]
    assert told.ledger.uses("l") and not told.ledger.uses(None)
    told.begins("b", "l")
    told.ends("b", "l", "max_output_tokens")
    assert not len(told.ledger)


def test_a_steered_answer_goes_on() -> None:
    one, steer = asked(), asked("response.steer", response="a")
    told = Told(one, steer)
    told.begins("a")
    assert told.hears("response.steer.accepted", steer={"previous_response_id": "a"}) is steer
    told.ends("a", reason="steered")
    assert told.ledger.uses(None)
    assert told.begins("b") is one
    told.ends("b")
    assert not len(told.ledger)


def test_a_steer_that_cannot_be_said_ends_it() -> None:
    told = Told(asked())
    told.begins("a")
    told.ends("a", reason="steered")
    told.hears("response.steer.failed", steer={"previous_response_id": "a"})
    assert not len(told.ledger)


def test_errors_find_what_they_answer() -> None:
    one, two, three = asked(event_id="1"), asked(event_id="2"), asked("session.get")
    told = Told(one, two, three)
    told.begins("a")
    assert told.hears("error", status=429, event_id="2") is two
    assert told.hears("error", status=404) is three
    assert told.hears("error", status=404, event_id="x") is None
    assert told.hears("error", status=410, event_id="1") is one


def test_without_event_ids_the_one_that_has_not_begun_is_refused() -> None:
    one, two, three = asked(lane="l"), asked(lane="l"), asked(lane="l")
    told = Told(one, two, three)
    told.begins("a", "l")
    assert told.hears("error", status=429, stream_id="l") is three
    assert told.hears("error", status=404, stream_id="l") is two
    assert told.hears("error", status=500, stream_id="l") is one


def test_calls_end_with_their_results() -> None:
    one, two = asked("session.get", event_id="1"), asked("session.get")
    told = Told(one, two)
    assert told.hears("session.get.done", result={"id": "s"}) is two
    assert told.hears("session.list.done", result={}) is None
    assert told.hears("session.get.done", result={"id": "s"}, event_id="1") is one


def test_what_was_resumed_may_have_no_more_events() -> None:
    one = asked("session.resume", response="a")
    told = Told(one)
    assert told.ledger.num_answers == 1
    told.hears("session.resume.done", result={"starting_after": 7, "last": 7})
    assert (told.ledger.num_answers, told.ledger.uses(None)) == (0, False)
    told.ledger.add(asked("session.resume", response="a"))
    assert len(told.ledger) == 1
    next_ = asked()
    told.ledger.add(next_)
    assert told.begins("b") is next_
    assert list(told.ledger) == [next_]  # a lane goes in order: what came before has ended


def test_streams_without_names_end_with_null() -> None:
    one = asked("session.resume", response="s")
    told = Told(one)
    assert told.hears("stream.event", response_id="s", data={"choices": []}) is None
    assert told.hears("stream.event", response_id="s", data=None) is one


def test_odd_events_are_about_nothing() -> None:
    told = Told(asked())
    for data in (b"", b"{", b"[]", b'{"type":7}', b'{"type":"response.created","response":3}'):
        told.ledger.saw(seen_in(data))
    assert len(told.ledger) == 1
