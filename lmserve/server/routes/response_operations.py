"""What the document says of /v1/responses."""

from __future__ import annotations

from lmserve.protocol import sessions as wire
from lmserve.protocol.openapi import Operation, Query
from lmserve.protocol.responses.changes import ResponseSteer, ResponseUpdate
from lmserve.protocol.responses.events import RESPONSE_EVENTS
from lmserve.protocol.responses.items import ResponseItemList
from lmserve.protocol.responses.objects import (
    ResponseDeleted,
    ResponseObject,
    ResponseSteered,
)
from lmserve.protocol.responses.requests import ResponseCreate

_TAG = "responses"
_READ = (404, 500)  # the store may fail
_CHANGE = (400, 404, 409, 413, 429, 500)

HEADERS = (
    Query(
        "Idempotency-Key",
        "1 to 255 characters, your name of this request: sent again, it joins the answer that is "
        "being made, or has the one that was made.",
    ),
)

CREATE = Operation(
    id="create_response",
    summary="Answer, and keep the answer",
    tag=_TAG,
    description="Send only what is new: `previous_response_id` or `conversation` says what it "
    "follows. A stream can be read again, from any event on, at `GET /v1/responses/{response_id}`.",
    request=ResponseCreate,
    example={
        "model": "SmolLM2-135M-Instruct",
        "input": "What is the capital of France?",
        "max_output_tokens": 64,
    },
    headers=HEADERS,
    response=ResponseObject,
    events=RESPONSE_EVENTS,
    statuses=(400, 404, 409, 413, 429, 500, 503, 504),
)
RETRIEVE = Operation(
    id="retrieve_response",
    summary="One response, or its events",
    tag=_TAG,
    query=(
        Query("stream", "Its events, from the first on; a running one's as they come.", (), False),
        Query(
            "starting_after",
            "With `stream`: the number of the last event that you have. The header "
            "`Last-Event-ID` says the same.",
            bounds=(-1, 10**15 - 1),
        ),
    ),
    response=ResponseObject,
    events=RESPONSE_EVENTS,
    statuses=(400, 404, 410, 500),
)
UPDATE = Operation(
    id="update_response",
    summary="Change a running answer's settings",
    tag=_TAG,
    description="From its next token on.",
    request=ResponseUpdate,
    example={"temperature": 0.2},
    response=ResponseObject,
    statuses=_CHANGE,
)
DELETE = Operation(
    id="delete_response",
    summary="Forget a response",
    tag=_TAG,
    description="Its messages too, unless others follow them. One that runs is stopped.",
    response=ResponseDeleted,
    statuses=_READ,
)
CANCEL = Operation(
    id="cancel_response",
    summary="Stop a response",
    tag=_TAG,
    description="What was said is kept. One that has ended stays as it is.",
    response=ResponseObject,
    statuses=_READ,
)
STEER = Operation(
    id="steer_response",
    summary="Say something while the answer is being made",
    tag=_TAG,
    description="It stops at its next token, `incomplete` with reason `steered`, and another "
    "response, with the same settings, answers what was said.",
    request=ResponseSteer,
    example={"input": "Shorter, please."},
    response=ResponseSteered,
    statuses=_CHANGE,
)
INPUT_ITEMS = Operation(
    id="list_response_input_items",
    summary="What a response answers",
    tag=_TAG,
    description="The whole line of messages before it.",
    query=(
        Query("limit", "At most so many.", default=wire.DEFAULT_LIMIT, bounds=(1, wire.MAX_LIMIT)),
        Query("order", "By time.", ("asc", "desc"), "desc"),
        Query("after", "The item that came last, in the page before."),
    ),
    response=ResponseItemList,
    statuses=(400, 404, 500),
)
