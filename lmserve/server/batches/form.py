"""A file in a form, written to disk as it comes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import BodyPartReader, MultipartReader, web
from aiohttp.http import HttpProcessingError

from lmserve.edge.patience import Patience
from lmserve.errors import BodyTooLarge, InvalidField, RequestError
from lmserve.protocol.batches.files import MAX_FIELD_BYTES, file_name
from lmserve.server.keys import SETTINGS
from lmserve.service.batches.files import Files, Upload

MAX_PARTS = 16
CHUNK_BYTES = 64 * 1024
MAX_FORM_BYTES = 2**20  # less its file

_PLAIN = ("binary", "8bit", "7bit")
# what aiohttp's reader makes of forms that are none
_BAD_FORMS = (
    web.RequestPayloadError,
    HttpProcessingError,
    AssertionError,
    LookupError,
    RuntimeError,
    ValueError,
)


@dataclass(slots=True)
class Form:
    """What came; `upload` is to be kept before the form is left."""

    upload: Upload
    filename: str = ""
    fields: dict[str, str] = field(default_factory=dict)


@asynccontextmanager
async def reading(request: web.Request, files: Files) -> AsyncIterator[Form]:
    """Raises RequestError, FilesFull, StoreError."""
    if request.content_type != "multipart/form-data":
        raise RequestError("send the file as multipart/form-data: curl -F file=@requests.jsonl")
    if request.headers.get("Content-Encoding", "identity").strip().lower() != "identity":
        raise RequestError("compressed bodies are not read: send it without Content-Encoding")
    most = request.app[SETTINGS].batches.max_file_bytes
    if (request.content_length or 0) > most + MAX_FORM_BYTES:
        raise BodyTooLarge(f"the form is over {most} bytes (max_file_bytes): send less")
    form = Form(files.upload())
    try:
        await _read(request, form)
        yield form
    finally:
        form.upload.close()


async def _read(request: web.Request, form: Form) -> None:
    patience = Patience(request.app[SETTINGS].limits.body_timeout_s)
    try:
        await _read_parts(request, form, patience)
    except _BAD_FORMS:
        raise RequestError("the form is cut short or badly framed: send it again") from None


async def _read_parts(request: web.Request, form: Form, patience: Patience) -> None:
    parts = await request.multipart()
    num_parts, has_file = 0, False
    while (part := await _next(parts, patience)) is not None:
        num_parts += 1
        if num_parts > MAX_PARTS or not isinstance(part, BodyPartReader):
            raise RequestError(f"the form has over {MAX_PARTS} parts, or forms inside")
        if part.headers.get("Content-Transfer-Encoding", "binary").lower() not in _PLAIN:
            raise RequestError("parts are not decoded: send them without Content-Transfer-Encoding")
        if part.name != "file":
            form.fields[part.name or ""] = await _text(part, patience)
            continue
        if has_file:
            raise InvalidField("file came twice: send one", param="file")
        has_file, form.filename = True, file_name(part.filename)
        while chunk := await _chunk(part, CHUNK_BYTES, patience):
            await form.upload.write(chunk)
    if not has_file:
        raise InvalidField("file is required", param="file")


async def _next(parts: MultipartReader, patience: Patience) -> Any:
    async with patience:
        return await parts.next()


async def _chunk(part: BodyPartReader, num_bytes: int, patience: Patience) -> bytes:
    async with patience:
        chunk = await part.read_chunk(num_bytes)
    patience.came(len(chunk))
    return chunk


async def _text(part: BodyPartReader, patience: Patience) -> str:
    data = bytearray()
    while chunk := await _chunk(part, MAX_FIELD_BYTES, patience):
        data += chunk
        if len(data) > MAX_FIELD_BYTES:
            name = (part.name or "")[:50]
            raise InvalidField(f"{name} is over {MAX_FIELD_BYTES} bytes", param=name)
    return data.decode("utf-8", "replace")
