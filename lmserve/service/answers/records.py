"""The words of answers that are kept: what is asked, what is known of each, what is told of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from msgspec import UNSET, UnsetType

from lmserve.service.items import Item
from lmserve.service.streams.stream import StreamEvent
from lmserve.types import Content, GenerateRequest, TextDelta, Usage

Status = Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]

# Why an answer is incomplete. `abandoned`: nobody read it for too long.
Reason = Literal[
    "max_output_tokens", "steered", "server_restart", "server_shutdown", "abandoned", "deadline"
]


@dataclass(frozen=True, slots=True)
class Ask:
    """One answer to make and keep, as a route hands it to `Answers`."""

    owner: str
    request: GenerateRequest  # its messages are what is new; none: the one before is answered
    session: str | None = None  # whose turn it is; waits for the turns before. None: see `previous`
    previous: str | None = None  # the response it follows, at once. None too: a new session begins
    after: int | None | UnsetType = UNSET  # in a session: the message to follow. Default: the head
    continues: int | None = None  # the incomplete answer's message that it goes on with
    instructions: str | None = None  # the system message of this answer alone, not in the tree
    keep: bool = True  # on disk; else in memory, for whoever asks soon
    background: bool = False  # goes on without readers
    generate: bool = True  # False: the input is kept and run, and nothing is said
    told: Mapping[str, Any] = field(default_factory=dict)  # JSON: of its settings, as they are told
    idempotency: tuple[str, bytes] | None = None  # the client's key, and the request's digest


@dataclass(slots=True)
class Record:
    """What is known of an answer, running or not. Once ended it does not change."""

    id: str  # resp_…
    owner: str
    session: str
    previous: str | None
    created: float  # unix time
    model: str
    told: Mapping[str, Any]  # as in `Ask`
    status: Status = "in_progress"
    reason: Reason | None = None  # with `incomplete`
    ended: float | None = None
    text: str = ""  # all that the model made
    items: Sequence[Item] | None = None  # told apart, where it is more than a text
    input_ids: Sequence[int] = ()  # the messages that were new
    message_id: int | None = None  # the answer's own
    usage: Usage | None = None  # once ended
    error: tuple[str, str] | None = None  # with `failed`: code and message
    background: bool = False
    successor: str | None = None  # once it was steered: the response that goes on

    @property
    def said(self) -> Sequence[Item]:
        """All that it said, told apart."""
        if self.items is not None:
            return self.items
        return (Content(self.text),) if self.text else ()


def has_logprobs(record: Record) -> bool:
    return any(isinstance(item, Content) and item.logprobs for item in record.said)


# What is told of a running answer beside its text.


@dataclass(frozen=True, slots=True)
class Queued:
    """It waits."""

    position: int  # requests before it
    estimate_s: float | None  # until it runs; None: nobody knows yet


@dataclass(frozen=True, slots=True)
class Steered:
    """Input was taken on: it will be said as soon as may be. It is on disk."""

    id: str  # steer_…
    response: str


@dataclass(frozen=True, slots=True)
class SteerPending:
    """After the end: input that was taken on is said with the outputs of these calls."""

    id: str
    response: str
    calls: Mapping[str, str]  # ids to names


@dataclass(frozen=True, slots=True)
class SteerFailed:
    """Input that was taken on could not be said: here it is again."""

    id: str
    response: str
    code: str
    message: str
    input: Any  # as the client gave it


@dataclass(frozen=True, slots=True)
class SteerApplied:
    """In the stream of the successor, after its first event."""

    id: str
    response: str  # the one that was steered
    successor: str
    token_index: int  # tokens of that answer that were kept


@dataclass(frozen=True, slots=True)
class Updated:
    """Settings were changed in mid-answer."""

    response: str
    token_index: int
    changes: Mapping[str, Any]


Notice = Queued | Steered | SteerPending | SteerFailed | SteerApplied | Updated


class Narrator(Protocol):
    """Tells one answer as events; the protocol has the words. `number` is the first event's."""

    def opening(self, record: Record, number: int) -> Sequence[StreamEvent]:
        """That it is being made. `record` is on disk."""

    def delta(self, delta: TextDelta, number: int) -> Sequence[StreamEvent]:
        """More text; where another item begins with it, that too, and the end of the one before."""

    def notice(self, notice: Notice, number: int) -> StreamEvent: ...

    def closing(self, record: Record, number: int) -> Sequence[StreamEvent]:
        """The last events; may be asked in a thread. `record` has ended and is on disk. `delta`
        told what it said before, perhaps of another narrator, in a server that died."""
