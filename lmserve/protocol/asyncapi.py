"""The AsyncAPI 3 document of the WebSocket, built from the structs that validate and that are
sent."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import msgspec

from lmserve.protocol.responses.events import RESPONSE_EVENTS, event_name
from lmserve.protocol.schemas import REF
from lmserve.protocol.socket_events import Authenticated, SocketError, StreamEvent

CHANNEL = "responses"

_ABOUT = (
    "Conversations over one WebSocket. Where the server was started with `--api-keys`, the key "
    "comes as `Authorization: Bearer KEY` or `X-Api-Key: KEY`; as the subprotocol "
    "`lmserve.key.<base64url of the key, without padding>` beside `lmserve`; or in the first "
    "event, `session.authenticate`, within 10 s. Events with the same `stream_id` are of one "
    "lane."
)
_LANE = {"type": "string", "description": "The lane, where the answer was asked for on one."}
_EVENT_ID = {"type": "string", "description": "Of the event that this answers."}


@dataclass(frozen=True, slots=True)
class Asked:
    """An event that clients send."""

    name: str
    event: type[msgspec.Struct]
    results: tuple[type[msgspec.Struct], ...] = ()  # `<name>.done` has one; none: no such event


def document(
    asked: Iterable[Asked], version: str, more: Iterable[tuple[str, type[msgspec.Struct]]] = ()
) -> dict[str, Any]:
    """`more`: events of the server that no event of a client is answered by."""
    asked = list(asked)
    told: list[tuple[str, type[msgspec.Struct]]] = [
        ("session.authenticated", Authenticated),
        ("error", SocketError),
        ("stream.event", StreamEvent),
        *more,
    ]
    kinds = [*(each.event for each in asked), *(kind for _, kind in told), *RESPONSE_EVENTS]
    kinds += [result for each in asked for result in each.results]
    structs = list(dict.fromkeys(kinds))
    refs, components = msgspec.json.schema_components(structs, ref_template=REF + "{name}")
    schemas = dict(zip(structs, refs, strict=True))
    sent = {each.name: _message(each.name, each.event, schemas[each.event]) for each in asked}
    received = {name: _message(name, kind, schemas[kind]) for name, kind in told}
    for event in RESPONSE_EVENTS:
        received[event_name(event)] = _message(event_name(event), event, _on_lane(schemas[event]))
    for each in asked:
        if each.results:
            done = f"{each.name}.done"
            received[done] = _done(done, [schemas[result] for result in each.results])
    return {
        "asyncapi": "3.0.0",
        "info": {"title": "lmserve", "version": version, "description": _ABOUT},
        "defaultContentType": "application/json",
        "channels": {
            CHANNEL: {
                "address": "/v1/responses",
                "messages": {
                    name: {"$ref": f"#/components/messages/{name}"} for name in (*sent, *received)
                },
                "bindings": {"ws": {"method": "GET"}},
            }
        },
        "operations": {
            "receive": _operation("receive", "What clients send.", sent),
            "send": _operation("send", "What the server sends.", received),
        },
        "components": {
            "messages": {**sent, **received},
            "schemas": components,
        },
    }


def _operation(action: str, summary: str, messages: Iterable[str]) -> dict[str, Any]:
    return {
        "action": action,
        "summary": summary,
        "channel": {"$ref": f"#/channels/{CHANNEL}"},
        "messages": [{"$ref": f"#/channels/{CHANNEL}/messages/{name}"} for name in messages],
    }


def _message(name: str, kind: type[msgspec.Struct], payload: dict[str, Any]) -> dict[str, Any]:
    summary = " ".join((kind.__doc__ or "").split())
    return {"name": name, "summary": summary, "payload": payload}


def _on_lane(schema: dict[str, Any]) -> dict[str, Any]:
    return {"allOf": [schema, {"type": "object", "properties": {"stream_id": _LANE}}]}


def _done(name: str, results: list[dict[str, Any]]) -> dict[str, Any]:
    result = results[0] if len(results) == 1 else {"anyOf": results}
    properties = {"type": {"const": name}, "event_id": _EVENT_ID, "result": result}
    return {
        "name": name,
        "summary": f"The answer to {name.removesuffix('.done')}.",
        "payload": {"type": "object", "properties": properties, "required": ["type", "result"]},
    }
