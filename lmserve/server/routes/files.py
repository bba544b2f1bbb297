"""/v1/files."""

from __future__ import annotations

import msgspec
from aiohttp import web

from lmserve.edge.keyring import OWNER
from lmserve.errors import InvalidField
from lmserve.protocol.batches import files as wire
from lmserve.protocol.openapi import Operation, Query
from lmserve.protocol.sessions import whole_number
from lmserve.server.batches import form
from lmserve.server.batches.views import file_object
from lmserve.server.keys import BATCHES
from lmserve.server.routes.route import Route, json_response
from lmserve.service.batches.batches import check_expires_after
from lmserve.service.batches.files import Files
from lmserve.service.batches.paging import page


async def create(request: web.Request) -> web.Response:
    async with form.reading(request, _files(request)) as given:
        fields = given.fields
        purpose = wire.purpose_of(fields.get("purpose"))
        seconds = wire.expires_after(
            fields.get("expires_after[anchor]"), fields.get("expires_after[seconds]")
        )
        check_expires_after(seconds, "expires_after[seconds]")
        if given.upload.num_bytes == 0:
            raise InvalidField("file is empty", param="file")
        record = await given.upload.keep(
            request[OWNER], filename=given.filename, purpose=purpose, expires_after_s=seconds
        )
    return _say(file_object(record))


async def list_(request: web.Request) -> web.Response:
    query = request.query
    limit = whole_number(query.get("limit", str(wire.MAX_LIMIT)), "limit", 1, wire.MAX_LIMIT)
    order = query.get("order", "desc")
    if order not in ("asc", "desc"):
        raise InvalidField(f"order is {order[:50]!r}: it must be asc or desc", param="order")
    records = _files(request).list(request[OWNER], query.get("purpose"))
    if order == "desc":
        records.reverse()
    shown, has_more = page(records, query.get("after") or None, limit)
    return _say(
        wire.FileList(
            data=[file_object(record) for record in shown],
            first_id=shown[0].id if shown else None,
            last_id=shown[-1].id if shown else None,
            has_more=has_more,
        )
    )


async def retrieve(request: web.Request) -> web.Response:
    return _say(file_object(_files(request).get(request[OWNER], _id(request))))


async def delete(request: web.Request) -> web.Response:
    await _files(request).delete(request[OWNER], _id(request))
    return _say(wire.FileDeleted(id=_id(request)))


async def content(request: web.Request) -> web.StreamResponse:
    files = _files(request)
    record = files.get(request[OWNER], _id(request))
    response = web.StreamResponse(headers={"Content-Disposition": "attachment"})
    response.content_type = "application/octet-stream"
    response.content_length = record.num_bytes
    async with files.reading(record) as chunks:
        await response.prepare(request)
        if request.method == "HEAD":
            return response
        async for chunk in chunks:
            await response.write(chunk)
    await response.write_eof()
    return response


def _files(request: web.Request) -> Files:
    return request.app[BATCHES].files


def _id(request: web.Request) -> str:
    return request.match_info["file_id"]


def _say(answer: msgspec.Struct) -> web.Response:
    return json_response(msgspec.json.encode(answer))


_TAG = "batches"

ROUTES = [
    Route(
        "POST",
        "/v1/files",
        create,
        Operation(
            id="create_file",
            summary="Upload a file",
            tag=_TAG,
            description="`curl /v1/files -F purpose=batch -F file=@requests.jsonl`. The file is on "
            "disk when this is answered.",
            request=wire.FileUpload,
            request_type="multipart/form-data",
            response=wire.FileObject,
            statuses=(400, 413, 429, 500),
        ),
    ),
    Route(
        "GET",
        "/v1/files",
        list_,
        Operation(
            id="list_files",
            summary="The files of this API key",
            tag=_TAG,
            query=(
                Query("purpose", "Only those."),
                Query(
                    "limit", "At most so many.", default=wire.MAX_LIMIT, bounds=(1, wire.MAX_LIMIT)
                ),
                Query("after", "The file that came last, in the page before."),
                Query("order", "`desc`: the newest first.", ("asc", "desc"), "desc"),
            ),
            response=wire.FileList,
            statuses=(400,),
        ),
    ),
    Route(
        "GET",
        "/v1/files/{file_id}",
        retrieve,
        Operation(
            id="retrieve_file",
            summary="About one file",
            tag=_TAG,
            response=wire.FileObject,
            statuses=(404,),
        ),
    ),
    Route(
        "GET",
        "/v1/files/{file_id}/content",
        content,
        Operation(
            id="download_file",
            summary="What is in a file",
            tag=_TAG,
            content_type="application/octet-stream",
            statuses=(404, 500),
        ),
    ),
    Route(
        "DELETE",
        "/v1/files/{file_id}",
        delete,
        Operation(
            id="delete_file",
            summary="Delete a file",
            tag=_TAG,
            description="Not while a batch reads it.",
            response=wire.FileDeleted,
            statuses=(404, 409, 500),
        ),
    ),
]
