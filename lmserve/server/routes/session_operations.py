"""What the document says of /v1/sessions."""

from __future__ import annotations

from lmserve.protocol import sessions as wire
from lmserve.protocol.openapi import Operation, Query
from lmserve.protocol.responses.events import RESPONSE_EVENTS
from lmserve.protocol.responses.objects import ResponseObject
from lmserve.protocol.turns import TurnBody
from lmserve.server.routes.response_operations import HEADERS

_TAG = "sessions"
_READ = (404, 500)  # the store may fail
_WRITE = (400, 404, 409, 413, 429, 500, 503)

CREATE = Operation(
    id="create_session",
    summary="Begin a session",
    tag=_TAG,
    request=wire.SessionCreate,
    example={"title": "Capitals"},
    response=wire.Session,
    statuses=(400, 409, 413, 429, 500, 503),
)
LIST = Operation(
    id="list_sessions",
    summary="The sessions of this API key, the last used first",
    tag=_TAG,
    description="Through `lmserve serve proxy`: those of one of its nodes.",
    query=(
        Query("limit", "At most so many.", default=wire.DEFAULT_LIMIT, bounds=(1, wire.MAX_LIMIT)),
        Query("after", "The session that came last, in the page before."),
    ),
    response=wire.SessionList,
    statuses=(400, 404, 500),
)
RETRIEVE = Operation(
    id="retrieve_session",
    summary="One session",
    tag=_TAG,
    response=wire.Session,
    statuses=_READ,
)
UPDATE = Operation(
    id="update_session",
    summary="Rename a session, roll it back, or go to another branch",
    tag=_TAG,
    request=wire.SessionUpdate,
    example={"title": "Capitals of Europe"},
    response=wire.Session,
    statuses=_WRITE,
)
DELETE = Operation(
    id="delete_session",
    summary="Forget a session",
    tag=_TAG,
    description="At once; an answer that is being made is stopped.",
    response=wire.SessionDeleted,
    statuses=_READ,
)
MESSAGES = Operation(
    id="list_session_messages",
    summary="A line of messages, or the whole tree",
    tag=_TAG,
    query=(
        Query("at", "The line's last message. Default: the session's head."),
        Query("tree", "All messages, each after its parent.", default=False),
    ),
    response=wire.SessionMessageList,
    statuses=(400, 404, 500),
)
APPEND = Operation(
    id="append_session_messages",
    summary="Add messages that are not answered",
    tag=_TAG,
    request=wire.SessionAppend,
    example={"messages": [{"role": "system", "content": "Answer in one sentence."}]},
    response=wire.SessionMessageList,
    statuses=_WRITE,
)
FORK = Operation(
    id="fork_session",
    summary="A new session that begins as this one does",
    tag=_TAG,
    request=wire.SessionFork,
    example={"title": "Another way"},
    response=wire.Session,
    statuses=_WRITE,
)
CANCEL = Operation(
    id="cancel_session",
    summary="Stop the answer that is being made",
    tag=_TAG,
    description="At once. What was said is kept, and the answer's status is `cancelled`.",
    response=wire.SessionCancelled,
    statuses=_READ,
)
EXPORT = Operation(
    id="export_session",
    summary="All of a session, as JSON",
    tag=_TAG,
    response=wire.SessionExport,
    statuses=_READ,
)
IMPORT = Operation(
    id="import_session",
    summary="A new session, as one was exported",
    tag=_TAG,
    request=wire.SessionImport,
    response=wire.Session,
    statuses=(400, 409, 413, 429, 500, 503),
)
TURN = Operation(
    id="create_session_turn",
    summary="Say something, and be answered",
    tag=_TAG,
    description="Send only what is new. `after`, `edit`, `regenerate` and `continue` say where in "
    "the tree; the answer becomes the session's head. It is a response, as those of "
    "`POST /v1/responses` are.",
    request=TurnBody,
    example={"input": "What is the capital of France?", "max_output_tokens": 64},
    headers=HEADERS,
    response=ResponseObject,
    events=RESPONSE_EVENTS,
    statuses=(*_WRITE, 504),
)
