"""The OpenAPI 3.1 document, built from the route table and the structs that validate."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from lmserve.protocol.errors import ErrorEvent, ErrorResponse
from lmserve.protocol.schemas import simplify

_PHRASES = {
    200: "OK",
    400: "The request is wrong; `param` names the field.",
    401: "An API key is missing or not known, where the server has some.",
    403: "The API key may not do this, or another web page asks, or for another name.",
    404: "There is nothing of this name.",
    409: "What is there already does not allow it: `code` says what.",
    408: "The body came too slowly.",
    410: "The events asked for are no longer kept.",
    413: "The body is over the limit.",
    429: "A limit is reached; come back after `Retry-After` seconds.",
    500: "The engine failed this request.",
    501: "The server was started without what this needs.",
    503: "The engine is loading, stuck, restarting or gone, or there are too many connections: "
    "come back after `Retry-After` seconds.",
    504: "The answer could not begin, or did not end, by its deadline.",
}
_KEY = {
    "key": {
        "type": "http",
        "scheme": "bearer",
        "description": "On servers that have API keys: one of them. Else nothing.",
    }
}


@dataclass(frozen=True, slots=True)
class Query:
    """A parameter in the URL, or a header; never required."""

    name: str
    description: str
    options: tuple[str, ...] = ()  # none: any text or, within `bounds`, any whole number
    default: str | int | bool | None = None
    several: bool = False  # it may come more than once
    bounds: tuple[int, int] | None = None

    def document(self, where: str = "query") -> dict[str, Any]:
        schema: dict[str, Any] = {"type": "string"}
        if isinstance(self.default, bool):
            schema = {"type": "boolean"}
        elif self.bounds is not None:
            least, most = self.bounds
            schema = {"type": "integer", "minimum": least, "maximum": most}
        elif self.options:
            schema["enum"] = list(self.options)
        if self.default is not None:
            schema["default"] = self.default
        if self.several:
            schema = {"type": "array", "items": schema}
        return {
            "name": self.name,
            "in": where,
            "description": self.description,
            "schema": schema,
        }


@dataclass(frozen=True, slots=True)
class Operation:
    """What one route takes and gives, for the document."""

    id: str
    summary: str
    tag: str
    description: str = ""
    request: type[msgspec.Struct] | None = None
    request_type: str = "application/json"
    example: dict[str, Any] | None = None  # of the request
    response: type[msgspec.Struct] | None = None  # None: `content_type` says what comes
    stream: type[msgspec.Struct] | None = None  # the chunk, where the answer may be streamed
    events: tuple[type[msgspec.Struct], ...] = ()  # where it may be streamed as named events
    numbered: bool = True  # those events, from 0
    lines: bool = False  # streamed one JSON object a line, which are no server-sent events
    ndjson: type[msgspec.Struct] | None = None  # one a line, where the client does not refuse it
    query: tuple[Query, ...] = ()
    headers: tuple[Query, ...] = ()
    content_type: str = "text/plain"  # "": nothing comes
    statuses: tuple[int, ...] = ()  # besides 200
    failure: type[msgspec.Struct] = ErrorResponse  # what comes with them


def plain_path(path: str) -> str:
    """`/v1/models/{id:.+}` as OpenAPI writes it: `/v1/models/{id}`."""
    return re.sub(r"\{(\w+):[^}]*\}", r"{\1}", path)


class Document:
    """Made when it is first asked for."""

    def __init__(self, operations: Sequence[tuple[str, str, Operation, bool]], version: str):
        self._operations = operations
        self._version = version
        self._encoded = b""

    def encoded(self) -> bytes:
        """As JSON. Not for the loop: it takes a tenth of a second to make."""
        if not self._encoded:
            self._encoded = msgspec.json.encode(document(self._operations, self._version))
        return self._encoded


def document(
    operations: Iterable[tuple[str, str, Operation, bool]], version: str
) -> dict[str, Any]:
    """The document for each (method, path, operation, whether it is open to those without key)."""
    operations = list(operations)
    kinds = {
        kind: None  # a dict for its order
        for _, _, op, _ in operations
        for kind in (op.request, op.response, op.stream, op.ndjson, op.failure, *op.events)
        if kind is not None
    }
    structs = [*kinds, ErrorEvent]
    refs, components = msgspec.json.schema_components(
        structs, ref_template="#/components/schemas/{name}"
    )
    schemas = dict(zip(structs, refs, strict=True))
    requests = [_name(schemas[op.request]["$ref"]) for _, _, op, _ in operations if op.request]
    responses = [_name(schemas[op.response]["$ref"]) for _, _, op, _ in operations if op.response]
    paths: dict[str, dict[str, Any]] = {}
    for method, path, op, is_open in operations:
        item = paths.setdefault(plain_path(path), {})
        item[method.lower()] = _operation(path, op, schemas, is_open)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "lmserve",
            "version": version,
            "description": "One language model for many people: OpenAI's and LMDeploy's routes.",
        },
        "paths": paths,
        "security": [{}, {"key": []}],
        "components": {
            "schemas": simplify(components, requests, responses),
            "securitySchemes": _KEY,
        },
    }


def _operation(path: str, op: Operation, schemas: dict[Any, Any], is_open: bool) -> dict[str, Any]:
    responses: dict[str, Any] = {"200": {"description": _PHRASES[200]}}
    if content := _content(op, schemas):
        responses["200"]["content"] = content
    statuses = {*op.statuses} | ({408} if op.request else set()) | (set() if is_open else {401})
    for status in sorted(statuses):
        responses[str(status)] = {
            "description": _PHRASES[status],
            "content": {"application/json": {"schema": schemas[op.failure]}},
        }
    document: dict[str, Any] = {
        "operationId": op.id,
        "summary": op.summary,
        "tags": [op.tag],
        "responses": responses,
    }
    if is_open:
        document["security"] = []
    if op.description:
        document["description"] = op.description
    parameters: list[dict[str, Any]] = [
        {
            "name": name,
            "in": "path",
            "required": True,
            "description": f"The {name.removesuffix('_id')}'s id.",
            "schema": {"type": "string"},
        }
        for name in re.findall(r"\{(\w+)", path)
    ]
    parameters += [query.document() for query in op.query]
    parameters += [header.document("header") for header in op.headers]
    if parameters:
        document["parameters"] = parameters
    if op.request is not None:
        media: dict[str, Any] = {"schema": schemas[op.request]}
        if op.example is not None:
            media["example"] = op.example
        document["requestBody"] = {"required": True, "content": {op.request_type: media}}
    return document


def _content(op: Operation, schemas: dict[Any, Any]) -> dict[str, Any]:
    if op.response is None and not op.content_type:
        return {}
    if op.response is None:
        kind = "object" if op.content_type == "application/json" else "string"
        return {op.content_type: {"schema": {"type": kind}}}
    content: dict[str, Any] = {"application/json": {"schema": schemas[op.response]}}
    if op.ndjson is not None:
        line, failure = schemas[op.ndjson], schemas[op.failure]
        content["application/x-ndjson"] = {
            "schema": {
                "type": "string",
                "description": "Unless `stream` is false: one JSON object a line, each a "
                f"{_name(line['$ref'])}, the last with `done`; or a last "
                f"{_name(failure['$ref'])} where the answer fails.",
                "contentMediaType": "application/x-ndjson",
                "contentSchema": {"anyOf": [line, failure]},
            }
        }
    elif op.stream is not None and op.lines:
        content["text/event-stream"] = {
            "schema": {
                "type": "string",
                "description": "With `stream`: one JSON object a line, each a "
                f"{_name(schemas[op.stream]['$ref'])}: no `data:`, no blank line, no `[DONE]`. "
                "The last has a `finish_reason`.",
                "contentMediaType": "application/jsonl",
                "contentSchema": schemas[op.stream],
            }
        }
    elif op.events:
        names = ", ".join(_name(schemas[event]["$ref"]) for event in op.events)
        id_ = "`id: <number from 0>`, " if op.numbered else ""
        content["text/event-stream"] = {
            "schema": {
                "type": "string",
                "description": f"With `stream`: named events, each {id_}`event: <type>` and "
                f"`data: <json>`, one of {names}.",
                "contentMediaType": "application/json",
                "contentSchema": {"anyOf": [schemas[event] for event in op.events]},
            }
        }
    elif op.stream is not None:
        chunk, error = schemas[op.stream]["$ref"], schemas[ErrorEvent]["$ref"]
        content["text/event-stream"] = {
            "schema": {
                "type": "string",
                "description": f"With `stream`: events `data: <json>`, each a {_name(chunk)}, or "
                f"one {_name(error)} where the answer fails; then `data: [DONE]`.",
                "contentMediaType": "application/json",
                "contentSchema": {"anyOf": [schemas[op.stream], schemas[ErrorEvent]]},
            }
        }
    return content


def _name(ref: str) -> str:
    return ref.rpartition("/")[2]
