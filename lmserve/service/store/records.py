"""What the store holds of answers, in rows and out of them."""

from __future__ import annotations

import dataclasses
import sqlite3
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from lmserve.messages import pack_ids
from lmserve.service.answers.records import Record
from lmserve.service.items import (
    Item,
    items_of,
    pack_logprobs,
    pack_parts,
    to_message,
    with_logprobs,
)
from lmserve.service.store.rows import Entry, to_json
from lmserve.service.streams.stream import StreamEvent
from lmserve.types import Part, Usage

Db = sqlite3.Connection


@dataclass(frozen=True, slots=True)
class Steer:
    """Input taken on while an answer is made."""

    id: str
    messages: Sequence[Mapping[str, Any]]
    given: Any  # as it came


def said_of(steers: Sequence[Steer]) -> list[dict[str, Any]]:
    """What tools gave comes first: it answers the calls that were made before."""
    messages = [dict(message) for steer in steers for message in steer.messages]
    return sorted(messages, key=lambda message: message.get("role") != "tool")


@dataclass(frozen=True, slots=True)
class Beginning:
    """What is written before anybody is told of an answer."""

    record: Record
    new: bool  # a session begins with it
    after: int | None  # the message that its first follows
    carried: Sequence[Entry]  # a line from another store, which comes before
    inputs: Sequence[Entry]
    answer: Entry | None  # empty, with the tokens before its own where it restarts. None: no answer
    idempotency: tuple[str, bytes] | None = None
    steered: str | None = None  # the response whose steers are its input


@dataclass(slots=True)
class Chunk:
    """What an answer told in a while."""

    first: int  # its first event
    events: list[StreamEvent] = field(default_factory=list)
    text: str = ""
    token_ids: Sequence[int] = ()
    parts: Sequence[Part] | None = None  # of the text, where it was told apart


@dataclass(frozen=True, slots=True)
class Said:
    """An answer's message as it stays."""

    text: str
    token_ids: Sequence[int]  # its own
    state: str | None
    items: Sequence[Item] | None = None  # where it is more than a text


# --- records --------------------------------------------------------------------------------

SELECT_RECORD = (
    "SELECT r.id, r.owner, s.id, r.previous, r.created, r.model, r.told, r.status, r.reason,"
    " r.ended, r.inputs, r.message, r.usage, r.error, r.background, r.successor, r.logprobs,"
    " m.message"
    " FROM responses r JOIN sessions s ON s.key = r.session"
    " LEFT JOIN messages m ON m.id = r.message AND r.owns"
)


def read_record(row: tuple[Any, ...]) -> Record:
    (id, owner, session, previous, created, model, told, status, reason, ended, inputs, message,
     usage, error, background, successor, logprobs, said) = row  # fmt: skip
    answer = {"content": ""} if said is None else msgspec.json.decode(said)
    record = Record(
        id=id,
        owner=owner,
        session=session,
        previous=previous,
        created=created,
        model=model,
        told=msgspec.json.decode(told),
        status=status,
        reason=reason,
        ended=ended,
        text=answer["content"],
        items=items_of(answer),
        input_ids=msgspec.json.decode(inputs),
        message_id=message,
        usage=None if usage is None else Usage(*msgspec.json.decode(usage)),
        error=None if error is None else tuple(msgspec.json.decode(error)),
        background=bool(background),
        successor=successor,
    )
    if logprobs is not None:
        record.items = with_logprobs(record.said, logprobs)
    return record


def insert_record(
    db: Db, session: int, beginning: Beginning, inputs: Sequence[int], message: int | None
) -> None:
    record = beginning.record
    key, digest = beginning.idempotency or (None, None)
    if key is not None:  # one that failed had it before
        db.execute(
            "UPDATE responses SET idempotency_key = NULL WHERE owner = ? AND idempotency_key = ?",
            (record.owner, key),
        )
    values = {
        "id": record.id,
        "owner": record.owner,
        "session": session,
        "message": message,
        "owns": beginning.answer is not None,
        "inputs": _json(inputs),
        "previous": record.previous,
        "status": "in_progress",
        "created": record.created,
        "model": record.model,
        "told": _json(record.told),
        "background": record.background,
        "idempotency_key": key,
        "idempotency_digest": digest,
    }
    places = ", ".join(["?"] * len(values))
    db.execute(
        f"INSERT INTO responses ({', '.join(values)}) VALUES ({places})", tuple(values.values())
    )


def end_record(db: Db, record: Record) -> None:
    """Its text and tokens are its message's now, not its chunks'."""
    usage = record.usage
    numbers = usage and dataclasses.astuple(usage)
    logprobs = pack_logprobs(record.items)
    db.execute(
        "UPDATE responses SET status = ?, reason = ?, ended = ?, usage = ?, error = ?,"
        " logprobs = ?, num_bytes = num_bytes + ? WHERE id = ?",
        (record.status, record.reason, record.ended, numbers and _json(numbers),
         record.error and _json(record.error), logprobs, len(logprobs or b""), record.id),
    )  # fmt: skip
    db.execute(
        "UPDATE chunks SET text = NULL, token_ids = NULL, parts = NULL WHERE response = ?",
        (record.id,),
    )


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


# --- chunks ---------------------------------------------------------------------------------


def insert_chunk(db: Db, id: str, chunk: Chunk) -> None:
    """Of a response that is there."""
    if not chunk.events:
        return
    pairs = [(event.name, event.data) for event in chunk.events]
    packed = zlib.compress(msgspec.msgpack.encode(pairs), 1)
    db.execute(
        "INSERT INTO chunks (response, first, num_events, events, text, token_ids, parts)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        (id, chunk.first, len(pairs), packed, chunk.text, pack_ids(chunk.token_ids),
         pack_parts(chunk.parts)),
    )  # fmt: skip
    db.execute("UPDATE responses SET num_bytes = num_bytes + ? WHERE id = ?", (len(packed), id))


def read_events(packed: bytes) -> list[StreamEvent]:
    pairs = msgspec.msgpack.decode(zlib.decompress(packed), type=list[tuple[bytes, bytes]])
    return [StreamEvent(*pair) for pair in pairs]


# --- an answer's message --------------------------------------------------------------------


def close_message(db: Db, message: int, said: Said) -> int:
    """Its own tokens come after those that it has. Returns how many."""
    packed = pack_ids(said.token_ids)
    num_tokens = len(packed) // 4
    (before,) = db.execute("SELECT token_ids FROM messages WHERE id = ?", (message,)).fetchone()
    db.execute(
        "UPDATE messages SET message = ?, token_ids = ?, line_tokens = line_tokens + ?, state = ?"
        " WHERE id = ?",
        (to_json(to_message(said.text, said.items)), before + packed, num_tokens, said.state,
         message),
    )  # fmt: skip
    return num_tokens
