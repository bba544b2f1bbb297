"""Which requests another engine gets, and how often."""

from __future__ import annotations

from lmserve.bridge.mailbox import Mailbox
from lmserve.bridge.requests import MAX_DEATHS, MAX_ENGINES, Requests
from lmserve.messages import SequenceOutput, Submit, pack_ids
from lmserve.sampling import SamplingParams


class Bench:
    """Requests of an engine that dies again and again."""

    def __init__(self) -> None:
        self.requests = Requests()

    def add(self, rid: int) -> Mailbox:
        return self.requests.add(Submit(rid, pack_ids([1]), SamplingParams()))

    def live_and_die(self, *begun: int, keep: bool = True) -> list[int]:
        """Returns those that the engine was sent."""
        sent = [submit.rid for submit in self.requests.to_send()]
        self.requests.begun(begun)
        self.requests.lost("engine", keep=keep)
        return sent


def test_only_those_that_two_engines_died_of_are_suspects() -> None:
    bench = Bench()
    poison, waits = bench.add(1), bench.add(2)
    for _ in range(MAX_DEATHS):
        assert bench.live_and_die(1) == [1, 2]
    last = poison.take()
    assert last.died
    assert "so did the engine before, and it is not tried again" in (last.error or "")
    assert bench.live_and_die(2) == [2]
    assert not waits.finished


def test_what_never_begins_is_not_tried_for_ever() -> None:
    bench = Bench()
    waits = bench.add(1)
    for _ in range(MAX_ENGINES):
        assert bench.live_and_die() == [1]
    last = waits.take()
    assert last.died
    assert (last.error or "").endswith("send it again")


def test_what_was_told_of_and_what_may_not_wait_end_with_their_engine() -> None:
    bench = Bench()
    told, waits = bench.add(1), bench.add(2)
    list(bench.requests.to_send())
    bench.requests.begun([1, 2, 3])  # a third has ended meanwhile
    bench.requests.put(SequenceOutput(1, pack_ids([5])))
    bench.requests.lost("engine", keep=True)
    assert told.finished
    assert not waits.finished
    bench.live_and_die(keep=False)
    assert waits.finished
    assert not len(bench.requests)
