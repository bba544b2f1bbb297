"""JSON schemas as client generators read them best.

msgspec writes `X | None` as `anyOf: [X, null]`. Generators make a wrapper class of every `anyOf`,
so what can be said plainly is: an optional field of a request is just optional (a null passes all
the same), a value of a response that may be null has two types. What is both is a response's.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

Schema = dict[str, Any]

NULL = {"type": "null"}
REF = "#/components/schemas/"


def simplify(
    components: dict[str, Schema], requests: Iterable[str], responses: Iterable[str] = ()
) -> dict[str, Schema]:
    """The components with nulls said plainly. `requests` names those that clients send,
    `responses` those that they get."""
    sent = reached(components, requests) - reached(components, responses)
    return {name: _simple(schema, optional=name in sent) for name, schema in components.items()}


def reached(components: dict[str, Schema], names: Iterable[str]) -> set[str]:
    """These components and all that they refer to."""
    found: set[str] = set()
    stack = list(names)
    while stack:
        name = stack.pop()
        if name not in found:
            found.add(name)
            stack.extend(_refs(components[name]))
    return found


def _refs(value: Any) -> Iterable[str]:
    if isinstance(value, dict):
        if isinstance(ref := value.get("$ref"), str):
            yield ref.removeprefix(REF)
        for item in value.values():
            yield from _refs(item)
    elif isinstance(value, list):
        for item in value:
            yield from _refs(item)


def _simple(value: Any, *, optional: bool) -> Any:
    if isinstance(value, list):
        return [_simple(item, optional=optional) for item in value]
    if not isinstance(value, dict):
        return value
    schema = {key: _simple(item, optional=optional) for key, item in value.items()}
    if "discriminator" in schema:  # generators make a class of all of them else
        schema["oneOf"] = schema.pop("anyOf")
    options = schema.get("anyOf")
    if not isinstance(options, list) or NULL not in options:
        return schema
    rest = [option for option in options if option != NULL]
    if optional:
        return _merged(schema, rest)
    if len(rest) == 1 and isinstance(rest[0].get("type"), str):
        return _merged(schema, [{**rest[0], "type": [rest[0]["type"], "null"]}])
    return schema


def _merged(schema: Schema, options: list[Schema]) -> Schema:
    """The schema with these options in place of its own; a null default goes with the null."""
    kept = {key: value for key, value in schema.items() if key != "anyOf"}
    if kept.get("default", 0) is None:
        del kept["default"]
    if len(options) == 1:
        return {**options[0], **kept}
    return {**kept, "anyOf": options}
