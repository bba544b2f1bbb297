"""`POST /v1/sessions/{id}/turns`: an answer within a session, whole or as named events."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
import orjson
from msgspec import Meta, Struct

from lmserve.errors import InvalidField, LmserveError
from lmserve.protocol.chat import ChatFields, ChatMessage, plain_message
from lmserve.protocol.common import UNSERVED, UsageInfo
from lmserve.protocol.errors import ErrorDetail, error_detail
from lmserve.protocol.sessions import SessionMessage
from lmserve.types import FinishReason, GenerateRequest

_FORMS = (
    "give one of: input (with after, if it is not to follow the head); input and edit, the message "
    "it takes the place of; regenerate alone, the answer to make again"
)


class TurnBody(ChatFields, kw_only=True):
    """What is said, and where in the session's tree."""

    input: Annotated[
        str | list[ChatMessage] | None,
        Meta(description="What the user says; or messages, oldest first."),
    ] = None
    after: Annotated[
        str | None,
        Meta(
            description="The message that the input follows, or `root` for a new beginning. "
            "Default: the session's head."
        ),
    ] = None
    edit: Annotated[
        str | None,
        Meta(description="The message that the input takes the place of: it becomes its sibling."),
    ] = None
    regenerate: Annotated[
        str | None,
        Meta(description="The answer to make again, as a sibling of it; without `input`."),
    ] = None
    session_id: Annotated[
        int | None, Meta(description="Not here: the path says it.", extra={UNSERVED: (-1,)})
    ] = None

    def check(self) -> None:
        """Exactly one of the three forms."""
        if self.regenerate is not None:
            wrong = self.input is not None or self.after is not None or self.edit is not None
            param = "regenerate"
        else:
            wrong = self.input is None or (self.after is not None and self.edit is not None)
            param = "input" if self.input is None else "edit"
        if wrong:
            raise InvalidField(_FORMS, param=param)
        if self.input is not None and not self.input:
            raise InvalidField("input is empty: say something", param="input")

    def to_generate(self, owner: str) -> GenerateRequest:
        common = self.sampling(owner)
        common["params"] |= {"messages": "input", "prompt": "input"}
        return GenerateRequest(
            messages=self._messages(),
            chat_template_kwargs=self.chat_template_kwargs or {},
            **common,
        )

    def _messages(self) -> list[dict[str, Any]]:
        if isinstance(self.input, str):
            return [{"role": "user", "content": self.input}]
        return [plain_message(message) for message in self.input or ()]


class SessionTurn(Struct, kw_only=True):
    """A turn that has ended and is kept."""

    id: Annotated[str, Meta(description="Of the answer's message.")]
    object: Literal["session.turn"] = "session.turn"
    session: str
    model: str
    created_at: Annotated[int, Meta(description="Unix time in seconds.")]
    input: Annotated[list[str], Meta(description="The new messages' ids; none of a regeneration.")]
    message: Annotated[SessionMessage, Meta(description="The answer.")]
    finish_reason: Annotated[
        FinishReason, Meta(description="`abort`: it was cancelled, and what was said is kept.")
    ]
    usage: Annotated[
        UsageInfo, Meta(description="`cached_tokens` of the prompt were not run again.")
    ]


class TurnStarted(Struct, kw_only=True):
    """The answer is being made."""

    type: Literal["turn.started"] = "turn.started"
    sequence_number: int
    session: str
    model: str
    created_at: int


class TurnDelta(Struct, kw_only=True):
    """More of the answer."""

    type: Literal["turn.delta"] = "turn.delta"
    sequence_number: int
    text: str


class TurnCompleted(Struct, kw_only=True):
    """The answer has ended and is kept."""

    type: Literal["turn.completed"] = "turn.completed"
    sequence_number: int
    turn: SessionTurn


class TurnFailed(Struct, kw_only=True):
    """The turn broke."""

    type: Literal["error"] = "error"
    sequence_number: int
    error: ErrorDetail


TurnEvent = TurnStarted | TurnDelta | TurnCompleted | TurnFailed


@dataclass(frozen=True, slots=True)
class TurnHead:
    session: str
    model: str
    created_at: int


class TurnEncoder:
    """One answer's events, numbered from 0."""

    __slots__ = ("_head", "_number")

    def __init__(self, head: TurnHead):
        self._head = head
        self._number = -1

    def started(self) -> bytes:
        head = self._head
        return self._event(
            TurnStarted(
                sequence_number=self._next(),
                session=head.session,
                model=head.model,
                created_at=head.created_at,
            )
        )

    def delta(self, text: str) -> bytes:
        """Every delta passes here, for they are numbered."""
        return (
            b'event: turn.delta\ndata: {"type":"turn.delta","sequence_number":%d,"text":%b}\n\n'
            % (self._next(), orjson.dumps(text))
        )

    def completed(self, turn: SessionTurn) -> bytes:
        return self._event(TurnCompleted(sequence_number=self._next(), turn=turn))

    def failed(self, error: LmserveError) -> bytes:
        return self._event(TurnFailed(sequence_number=self._next(), error=error_detail(error)))

    def _next(self) -> int:
        self._number += 1
        return self._number

    def _event(self, event: TurnEvent) -> bytes:
        return b"event: %b\ndata: %b\n\n" % (event.type.encode(), msgspec.json.encode(event))
