"""/v1/batches."""

from __future__ import annotations

import msgspec
from aiohttp import web

from lmserve.edge.keyring import OWNER
from lmserve.protocol.batches import batches as wire
from lmserve.protocol.openapi import Operation, Query
from lmserve.protocol.sessions import whole_number
from lmserve.server import body
from lmserve.server.batches.views import batch_object
from lmserve.server.keys import BATCHES
from lmserve.server.routes.route import Route, json_response
from lmserve.service.batches.batches import BatchAsk
from lmserve.service.batches.paging import page
from lmserve.service.batches.records import BatchRecord


async def create(request: web.Request) -> web.Response:
    async with body.reading(request, wire.BatchCreate) as asked:
        expires = asked.output_expires_after
        record = await request.app[BATCHES].create(
            BatchAsk(
                request[OWNER],
                asked.input_file_id,
                asked.endpoint,
                asked.completion_window,
                asked.metadata,
                None if expires is None else expires.seconds,
            )
        )
    return _say(record)


async def list_(request: web.Request) -> web.Response:
    query = request.query
    limit = whole_number(query.get("limit", str(wire.DEFAULT_LIMIT)), "limit", 1, wire.MAX_LIMIT)
    records = request.app[BATCHES].list(request[OWNER])
    shown, has_more = page(records, query.get("after") or None, limit)
    found = wire.BatchList(
        data=[batch_object(record) for record in shown],
        first_id=shown[0].id if shown else None,
        last_id=shown[-1].id if shown else None,
        has_more=has_more,
    )
    return json_response(msgspec.json.encode(found))


async def retrieve(request: web.Request) -> web.Response:
    return _say(request.app[BATCHES].get(request[OWNER], _id(request)))


async def cancel(request: web.Request) -> web.Response:
    return _say(await request.app[BATCHES].cancel(request[OWNER], _id(request)))


def _id(request: web.Request) -> str:
    return request.match_info["batch_id"]


def _say(record: BatchRecord) -> web.Response:
    return json_response(msgspec.json.encode(batch_object(record)))


_TAG = "batches"

ROUTES = [
    Route(
        "POST",
        "/v1/batches",
        create,
        Operation(
            id="create_batch",
            summary="Run a file of requests",
            tag=_TAG,
            description="When nobody else waits, at the lowest priority. A restart does not lose "
            "it: requests that have no result yet are run again.",
            request=wire.BatchCreate,
            example={
                "input_file_id": "file-0123456789abcdef0123456789abcdef",
                "endpoint": "/v1/chat/completions",
                "completion_window": "24h",
            },
            response=wire.BatchObject,
            statuses=(400, 404, 413, 429, 500),
        ),
    ),
    Route(
        "GET",
        "/v1/batches",
        list_,
        Operation(
            id="list_batches",
            summary="The batches of this API key, the newest first",
            tag=_TAG,
            query=(
                Query(
                    "limit",
                    "At most so many.",
                    default=wire.DEFAULT_LIMIT,
                    bounds=(1, wire.MAX_LIMIT),
                ),
                Query("after", "The batch that came last, in the page before."),
            ),
            response=wire.BatchList,
            statuses=(400,),
        ),
    ),
    Route(
        "GET",
        "/v1/batches/{batch_id}",
        retrieve,
        Operation(
            id="retrieve_batch",
            summary="One batch",
            tag=_TAG,
            response=wire.BatchObject,
            statuses=(404,),
        ),
    ),
    Route(
        "POST",
        "/v1/batches/{batch_id}/cancel",
        cancel,
        Operation(
            id="cancel_batch",
            summary="Stop a batch",
            tag=_TAG,
            description="Requests that run are stopped; the results there are can be read.",
            response=wire.BatchObject,
            statuses=(404, 409, 500),
        ),
    ),
]
