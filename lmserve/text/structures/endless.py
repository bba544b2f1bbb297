"""Schemas of documents that never end: an object that has to hold one of its own kind."""

from __future__ import annotations

from typing import Any

Found = dict[int, tuple[dict[str, Any], str]]  # id of a schema: it, and where it is


def find_endless(root: dict[str, Any], found: Found) -> str | None:
    """Where the whole can have no end, the path of a schema that has none."""
    schemas = [schema for schema, _ in reversed(found.values())]  # what is inside comes first
    if not any("$ref" in schema for schema in schemas):
        return None
    ends: set[int] = set()
    grown = True
    while grown:
        grown = False
        for schema in schemas:
            if id(schema) not in ends and _can_end(schema, root, ends):
                ends.add(id(schema))
                grown = True
    if id(root) in ends:
        return None
    return next(path for schema, path in found.values() if id(schema) not in ends)


def _can_end(schema: dict[str, Any], root: dict[str, Any], ends: set[int]) -> bool:
    def ok(sub: object) -> bool:
        return not isinstance(sub, dict) or id(sub) in ends

    ref = schema.get("$ref")
    if ref is not None and not ok(_target(root, ref)):
        return False
    if not all(map(ok, schema.get("allOf", ()))):
        return False
    for keyword in ("anyOf", "oneOf"):
        if schema.get(keyword) and not any(map(ok, schema[keyword])):
            return False
    kind = schema.get("type")
    if kind == "object":
        properties = schema.get("properties", {})
        return all(ok(properties.get(name)) for name in schema.get("required", ()))
    if kind == "array" and schema.get("minItems", 0) > 0:
        first = schema.get("prefixItems") or [schema.get("items")]
        return ok(first[0])
    return True


def _target(root: dict[str, Any], ref: str) -> object:
    """None where there is none, or it is found in another way: the library will tell."""
    if ref == "#":
        return root
    value: Any = root
    for name in ref.removeprefix("#/").split("/"):
        name = name.replace("~1", "/").replace("~0", "~")
        if isinstance(value, dict):
            value = value.get(name)
        elif isinstance(value, list) and name.isdecimal() and int(name) < len(value):
            value = value[int(name)]
        else:
            return None
    return value
