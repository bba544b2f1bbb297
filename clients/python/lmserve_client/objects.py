"""What sessions and answers are told with. Each keeps what it was read from as `raw`: servers say
more than is named here, and new ones will."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Union

from lmserve_client.errors import APIError, APIResponseError
from lmserve_client.types import JSONObject


@dataclass(frozen=True)
class Session:
    """One conversation that the server keeps."""

    id: str
    title: str | None
    created_at: int  # unix time
    used_at: int
    head: str | None  # the message after which the next turn goes on
    num_messages: int  # in all branches
    num_tokens: int
    running: tuple[str, ...]  # the responses that are being made
    raw: JSONObject = field(repr=False)


@dataclass(frozen=True)
class SessionPage:
    """Sessions, the last used first; more come with `after=page.last_id`."""

    sessions: tuple[Session, ...]
    last_id: str | None
    has_more: bool

    def __iter__(self) -> Iterator[Session]:
        return iter(self.sessions)


@dataclass(frozen=True)
class Message:
    """One message of a session's tree."""

    id: str
    parent: str | None  # the message it follows; None: it begins the tree
    role: str
    content: Any  # a string, or a list of parts
    created_at: int
    line_tokens: int  # from the root up to here
    siblings: tuple[str, ...]  # all with the same parent, itself too; empty in a whole tree
    raw: JSONObject = field(repr=False)

    @property
    def text(self) -> str:
        if isinstance(self.content, str):
            return self.content
        return "".join(part.get("text") or "" for part in self.content or ())


@dataclass(frozen=True)
class ResponseUsage:
    input_tokens: int
    output_tokens: int
    total_tokens: int
    reused_tokens: int  # of the input: not run again


@dataclass(frozen=True)
class Response:
    """An answer as the server keeps it."""

    id: str
    status: str  # queued, in_progress, completed, incomplete, failed, cancelled
    reason: str | None  # why it is incomplete
    text: str
    session: str | None
    message_id: str | None  # the answer's place in the session's tree
    input_message_ids: tuple[str, ...]
    previous_response_id: str | None
    model: str
    usage: ResponseUsage | None  # once it has ended
    raw: JSONObject = field(repr=False)


@dataclass(frozen=True)
class Event:
    """One event of a stream. `data` is all of it."""

    type: str
    sequence_number: int
    data: JSONObject

    @property
    def text(self) -> str:
        """What this event adds to the answer's text."""
        is_text = self.type == "response.output_text.delta"
        return str(self.data.get("delta", "")) if is_text else ""


@dataclass(frozen=True)
class Steered:
    """What was said in mid-answer is being answered."""

    id: str  # steer_…
    response_id: str  # what was stopped
    successor_id: str | None  # what goes on; None: it waits for a tool's output
    token_index: int | None  # tokens of the stopped answer that were kept


@dataclass(frozen=True)
class Prefilled:
    """How much of a draft was run ahead."""

    num_tokens: int
    cached_tokens: int


class Piece(str):
    """More text of an answer: a plain string that knows which response says it. That changes
    where the answer was steered."""

    response_id: str

    def __new__(cls, text: str, response_id: str) -> Piece:
        piece = super().__new__(cls, text)
        piece.response_id = response_id
        return piece


class AnswerInterrupted(APIError):
    """The answer ended before its end for a reason of the server: it was restarted, nobody read
    for too long, or the deadline passed. `response` holds what is kept of it; go on with
    `client.respond(continue_=error.response)`."""

    def __init__(self, response: Response):
        super().__init__(f"the answer {response.id} was interrupted: {response.reason}")
        self.response = response
        self.reason = response.reason


class SteerFailed(APIError):
    """What was said in mid-answer could not be taken on: `input` is it, to be said anew."""

    def __init__(self, code: str | None, message: str, input: Any):
        super().__init__(message)
        self.code = code
        self.input = input


Named = Union[str, Session, Message, Response]  # whatever has an id, or the id itself


def id_of(named: Named | Any) -> str:
    return named if isinstance(named, str) else str(named.id)


def session(item: Mapping[str, Any]) -> Session:
    with _reading(item):
        return Session(
            id=item["id"],
            title=item.get("title"),
            created_at=item["created_at"],
            used_at=item["used_at"],
            head=item.get("head"),
            num_messages=item["num_messages"],
            num_tokens=item["num_tokens"],
            running=tuple(item.get("running") or ()),
            raw=dict(item),
        )


def session_page(item: Mapping[str, Any]) -> SessionPage:
    with _reading(item):
        listed = tuple(session(each) for each in item["data"])
        return SessionPage(listed, item.get("last_id"), bool(item.get("has_more")))


def messages(item: Mapping[str, Any]) -> list[Message]:
    with _reading(item):
        return [message(each) for each in item["data"]]


def message(item: Mapping[str, Any]) -> Message:
    with _reading(item):
        return Message(
            id=item["id"],
            parent=item.get("parent"),
            role=item["role"],
            content=item["content"],
            created_at=item["created_at"],
            line_tokens=item.get("line_tokens", 0),
            siblings=tuple(item.get("siblings") or ()),
            raw=dict(item),
        )


def response(item: Mapping[str, Any]) -> Response:
    with _reading(item):
        details = item.get("incomplete_details") or {}
        return Response(
            id=item["id"],
            status=item["status"],
            reason=details.get("reason"),
            text=_text(item.get("output") or ()),
            session=item.get("session"),
            message_id=item.get("message_id"),
            input_message_ids=tuple(item.get("input_message_ids") or ()),
            previous_response_id=item.get("previous_response_id"),
            model=item.get("model", ""),
            usage=_usage(item.get("usage")),
            raw=dict(item),
        )


def event(item: JSONObject) -> Event:
    return Event(str(item.get("type")), item.get("sequence_number", -1), item)


def _usage(item: Mapping[str, Any] | None) -> ResponseUsage | None:
    if not item:
        return None
    details = item.get("input_tokens_details") or {}
    return ResponseUsage(
        input_tokens=item["input_tokens"],
        output_tokens=item["output_tokens"],
        total_tokens=item["total_tokens"],
        reused_tokens=details.get("cached_tokens", 0),
    )


def _text(output: Any) -> str:
    parts = [part for one in output if one.get("type") == "message" for part in one["content"]]
    return "".join(part["text"] for part in parts if part.get("type") == "output_text")


class _reading:
    """Tells of what is missing in what the server said."""

    def __init__(self, item: Any):
        self._item = item

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, (KeyError, TypeError, AttributeError)):
            said = str(self._item)[:200]
            raise APIResponseError(f"the server answered without what was asked: {said}") from None
