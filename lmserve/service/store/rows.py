"""What the store holds, in rows and out of them: messages, and the line to one of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from lmserve.errors import InvalidField
from lmserve.messages import unpack_ids
from lmserve.service.items import as_chat
from lmserve.types import History

#: `used` of a session used now: never before another's, though the time of day be set back, or
#: what was used last would be the first to make room.
LAST = "max(?, (SELECT coalesce(max(used), 0) FROM sessions WHERE lost IS NULL))"

Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class SessionKey:
    """Sessions of different owners never meet, whatever their ids."""

    owner: str
    id: str  # for /v1/chat/interactive the client's integer as text

    @property
    def number(self) -> int | None:
        """That integer; other routes' answers may be under it."""
        try:
            number = int(self.id)
        except ValueError:
            return None
        return number if str(number) == self.id else None


@dataclass(frozen=True, slots=True)
class Entry:
    """A message to store, with the tokens it added to those of its line (None: not known), or
    with `restarts` all of the line's up to here."""

    message: Message
    token_ids: Sequence[int] | None = None
    restarts: bool = False
    text_key: str | None = None  # of the tokenizer and template that made them


@dataclass(frozen=True, slots=True)
class Line:
    """The straight way from a session's first message to its head, or to another message.
    Empty: there is none."""

    messages: list[Message] = field(default_factory=list)
    history: History | None = None  # as far as tokens of the model served now are known
    num_tokens: int = 0  # of the line, be they of use or not
    end: int | None = None  # its last message
    token_ids: list[int] | None = None  # all of the line's, where those of the model now are known


def line_sql(columns: str = "message, token_ids, line_tokens, restarts, text_key") -> str:
    """The messages from the root to the one that is asked for."""
    return f"""
WITH RECURSIVE way (id, up, depth) AS (
    SELECT id, parent, 0 FROM messages WHERE id = ?
    UNION ALL
    SELECT m.id, m.parent, depth + 1 FROM messages m JOIN way ON m.id = way.up
)
SELECT {columns} FROM way JOIN messages USING (id) ORDER BY depth DESC
"""


def read_line(
    rows: Iterator[tuple[str, bytes | None, int, int, str | None]], text_key: str, end: int
) -> Line:
    """`end`: the last one's id. Tokens are of use where this tokenizer and template made them."""
    messages: list[Message] = []
    ids = bytearray()
    known = False
    num_bytes = num_known = 0  # of `ids` and `messages`, up to the last answer
    num_tokens = 0
    for text, packed, num_tokens, restarts, key in rows:  # noqa: B007  the last one's
        messages.append(as_chat(msgspec.json.decode(text)))
        # an unknown message ends what is known, until all begins anew
        known = packed is not None and key == text_key and (known or bool(restarts))
        if restarts:
            if not (known and packed and packed.startswith(bytes(ids[:num_bytes]))):
                num_bytes = num_known = 0  # what was run before is not run on
            ids.clear()
        if known and packed is not None:
            ids += packed
            if messages[-1].get("role") == "assistant":
                num_bytes, num_known = len(ids), len(messages)
    history = History(unpack_ids(bytes(ids[:num_bytes])), num_known) if num_known else None
    if history is not None and num_known == len(messages):
        token_ids: list[int] | None = history.token_ids
    else:
        token_ids = unpack_ids(bytes(ids)) if known else None
    return Line(messages, history, num_tokens, end, token_ids)


def num_stored(text: str, packed: bytes | None) -> int:
    """In tokens. A text that was never run has about one in four characters."""
    return len(text) // 4 + 1 if packed is None else len(packed) // 4


def to_json(message: Message, param: str = "prompt") -> str:
    try:
        return msgspec.json.encode(message).decode()
    except UnicodeEncodeError:
        raise InvalidField(
            "the text holds half of a surrogate pair, which is not valid Unicode: send it as UTF-8",
            param=param,
        ) from None
