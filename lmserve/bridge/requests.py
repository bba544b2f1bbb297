"""The requests that one handle's engines have open, and which of them the next engine gets.

A request of which nothing was told yet is as good as new: where its engine died, the next one is
sent it, and its reader never knows. Where two that had begun with it died it is not tried again:
it may be what they died of.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import msgspec

from lmserve.bridge.mailbox import Mailbox
from lmserve.messages import SequenceOutput, Submit
from lmserve.sampling import SamplingParams

MAX_DEATHS = 2  # of engines that had begun with a request
MAX_ENGINES = 8  # that one request is sent to: nothing is tried for ever


@dataclass(slots=True)
class Request:
    mailbox: Mailbox
    submit: Submit | None  # until something of the answer is told
    num_engines: int = 0  # that were sent it
    num_deaths: int = 0  # of those that had begun with it
    begun: bool = False  # by the engine there is

    @property
    def is_suspect(self) -> bool:
        return self.num_deaths >= MAX_DEATHS

    def lost(self) -> None:
        """The engine died."""
        self.num_deaths += self.begun
        self.begun = False


class Requests:
    def __init__(self) -> None:
        self._open: dict[int, Request] = {}

    def __contains__(self, rid: int) -> bool:
        return rid in self._open

    def __len__(self) -> int:
        return len(self._open)

    def add(self, submit: Submit) -> Mailbox:
        """Not sent yet: `to_send` or `sent` is next."""
        mailbox = Mailbox(submit.rid)
        self._open[submit.rid] = Request(mailbox, submit)
        return mailbox

    def sent(self, rid: int) -> None:
        self._open[rid].num_engines += 1

    def to_send(self) -> Iterator[Submit]:
        """To a new engine, in the order in which they came."""
        for request in self._open.values():
            assert request.submit is not None, "what was told of ended with its engine"
            request.num_engines += 1
            yield request.submit

    def begun(self, rids: Iterable[int]) -> None:
        """The engine runs them from now on."""
        for rid in rids:
            if (request := self._open.get(rid)) is not None:
                request.begun = True

    def update(self, rid: int, sampling: SamplingParams) -> None:
        """What is sent from now on has these settings."""
        request = self._open[rid]
        if request.submit is not None:
            request.submit = msgspec.structs.replace(request.submit, sampling=sampling)

    def forget(self, rid: int) -> bool:
        """Says whether it was open."""
        return self._open.pop(rid, None) is not None

    def put(self, output: SequenceOutput) -> None:
        """What its engine says of it."""
        request = self._open.get(output.rid)
        if request is None:
            return
        if request.submit is not None and _tells(output):
            request.submit = None
        if output.finish is not None:  # before `put`: its listener may abort any of them
            del self._open[output.rid]
        request.mailbox.put(output)

    def lost(self, noun: str, *, keep: bool) -> None:
        """The engine died. With `keep`, those that another may be sent stay open."""
        told, self._open = self._open, {}
        for rid, request in list(told.items()):
            request.lost()
            may_go_on = request.submit is not None and not request.is_suspect
            if keep and may_go_on and request.num_engines < MAX_ENGINES:
                self._open[rid] = told.pop(rid)
        for request in told.values():
            again = "send it again"
            if request.submit is not None and request.is_suspect:
                again = f"so did the {noun} before, and it is not tried again"
            error = f"the {noun} died while this request ran in it; {again}"
            request.mailbox.end("error", error, died=True)

    def end_all(
        self, finish: str, error: str | None = None, *, retry_after_s: int | None = None
    ) -> None:
        ended, self._open = self._open, {}
        for request in ended.values():
            request.mailbox.end(finish, error, retry_after_s=retry_after_s)


def _tells(output: SequenceOutput) -> bool:
    """Whether a reader would see it twice, were the request run again."""
    return bool(output.token_ids or output.prompt_logprobs or output.finish)
