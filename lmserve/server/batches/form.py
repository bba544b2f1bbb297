"""A file in a form, written to disk as it comes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import BodyPartReader, web
from aiohttp.http import HttpProcessingError

from lmserve.errors import InvalidField, RequestError
from lmserve.protocol.batches.files import MAX_FIELD_BYTES, file_name
from lmserve.server.body import READ_TIMEOUT_S
from lmserve.service.batches.files import Files, Upload

LEAST_BYTES_S = 16 * 1024  # a slower client is given up, once its first patience is used up
MAX_PARTS = 16
CHUNK_BYTES = 64 * 1024

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
    form = Form(files.upload())
    try:
        await _read(request, form)
        yield form
    finally:
        form.upload.close()


async def _read(request: web.Request, form: Form) -> None:
    try:
        async with asyncio.timeout(READ_TIMEOUT_S) as patience:
            await _read_parts(request, form, patience)
    except TimeoutError:
        raise RequestError(
            f"the file came too slowly: send {LEAST_BYTES_S // 1024} KiB a second at least"
        ) from None
    except _BAD_FORMS:
        raise RequestError("the form is cut short or badly framed: send it again") from None


async def _read_parts(request: web.Request, form: Form, patience: asyncio.Timeout) -> None:
    began = asyncio.get_running_loop().time()
    parts = await request.multipart()
    num_parts, has_file = 0, False
    while (part := await parts.next()) is not None:
        num_parts += 1
        if num_parts > MAX_PARTS or not isinstance(part, BodyPartReader):
            raise RequestError(f"the form has over {MAX_PARTS} parts, or forms inside")
        if part.headers.get("Content-Transfer-Encoding", "binary").lower() not in _PLAIN:
            raise RequestError("parts are not decoded: send them without Content-Transfer-Encoding")
        if part.name != "file":
            form.fields[part.name or ""] = await _text(part)
            continue
        if has_file:
            raise InvalidField("file came twice: send one", param="file")
        has_file, form.filename = True, file_name(part.filename)
        while chunk := await part.read_chunk(CHUNK_BYTES):
            await form.upload.write(chunk)
            patience.reschedule(began + READ_TIMEOUT_S + form.upload.num_bytes / LEAST_BYTES_S)
    if not has_file:
        raise InvalidField("file is required", param="file")


async def _text(part: BodyPartReader) -> str:
    data = bytearray()
    while chunk := await part.read_chunk(MAX_FIELD_BYTES):
        data += chunk
        if len(data) > MAX_FIELD_BYTES:
            name = (part.name or "")[:50]
            raise InvalidField(f"{name} is over {MAX_FIELD_BYTES} bytes", param=name)
    return data.decode("utf-8", "replace")
