"""GET /v1/streams/{stream_id}: the events of an answer, again and on."""

from __future__ import annotations

from aiohttp import web

from lmserve.edge.keyring import OWNER
from lmserve.protocol.openapi import Operation, Query
from lmserve.server.cursor import HEADER, QUERY, cursor
from lmserve.server.keys import ANSWERS, STREAMS
from lmserve.server.routes.route import Route
from lmserve.server.sse import send_stream
from lmserve.service.streams.stream import Stream


async def streams(request: web.Request) -> web.StreamResponse:
    starting_after = cursor(request)
    stream = await find(request.app, request[OWNER], request.match_info["stream_id"])
    return await send_stream(request, stream, starting_after=starting_after)


async def find(app: web.Application, owner: str, id: str) -> Stream:
    """Any stream. Raises StreamNotFound, AnswerNotFound, EventsGone."""
    if id.startswith("resp_"):
        return await app[ANSWERS].stream(owner, id)  # from disk, where it ended long ago
    return app[STREAMS].find(owner, id)


ROUTES = [
    Route(
        "GET",
        "/v1/streams/{stream_id}",
        streams,
        Operation(
            id="read_stream",
            summary="Go on reading an answer",
            tag="generate",
            description="Whose id is the `X-Stream-Id` of its first response, or a response's id. "
            "Its events are those that were sent there, each with its number as `id`, from any of "
            "them on; then those that come, until it ends. Several may read it at once. Ended "
            "streams are kept for a while.",
            query=(
                Query(
                    QUERY,
                    "The number of the last event that you have. Default: from the first on.",
                    bounds=(-1, 10**15 - 1),
                ),
            ),
            headers=(Query(HEADER, "The same; the query wins."),),
            content_type="text/event-stream",
            statuses=(400, 404, 410),
        ),
    )
]
