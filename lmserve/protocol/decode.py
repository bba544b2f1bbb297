"""Request bodies to structs, with one clear message for everything that can be wrong.

    bytes ─► parse_object ─► dict ─► msgspec.convert ─► struct ─► refuse_unserved ─► request

The content type is not looked at: what parses as JSON is JSON.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, TypeVar

import msgspec
import orjson

from lmserve.errors import InvalidField, RequestError
from lmserve.protocol.unserved import UNSERVED

T = TypeVar("T", bound=msgspec.Struct)

MAX_CHECKED_BYTES = 64 * 1024  # looking for keys that come twice holds up everybody else
MAX_UNKNOWN = 100  # names told of one body
# of one body: parsing more holds up all others, in whatever thread
MAX_STRINGS = 250_000
MAX_VALUES = 1_000_000
MAX_PARTS = 100_000  # objects and lists: empty ones take thirty times their bytes, parsed

#: A JSON string, and the colon that makes it a key.
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"(\s*:)?', re.DOTALL)
_AT = re.compile(r"(.*) - at `\$\.?(.*)`", re.DOTALL)
_KINDS = {
    "str": "a string",
    "int": "an integer",
    "float": "a number",
    "bool": "true or false",
    "null": "null",
    "array": "an array",
    "object": "an object",
}


def decode(body: bytes, kind: type[T]) -> tuple[T, list[str]]:
    """The request in `body`, and the names of its fields that nobody knows, as `messages.foo`.

    Raises RequestError or InvalidField, which says where and what was expected.
    """
    return convert(parse_object(body), kind)


def convert(parsed: dict[str, Any], kind: type[T]) -> tuple[T, list[str]]:
    """As `decode`, of what `parse_object` gave."""
    try:
        request = msgspec.convert(parsed, kind, strict=True)
    except msgspec.ValidationError as error:
        raise _invalid(error, kind) from None
    refuse_unserved(request)
    return request, _unknown(parsed, kind)


def parse_object(body: bytes, what: str = "the body") -> dict[str, Any]:
    """The JSON object in `body`: UTF-8 without a BOM, no NaN; no key twice in a short one."""
    if not body.strip():
        raise RequestError(f"{what} is empty: send a JSON object")
    if many := _too_many(body):
        raise RequestError(f"{what} has over {many}: send fewer of them")
    try:
        parsed = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise RequestError(f"{what} is not valid JSON: {error}") from None
    if not isinstance(parsed, dict):
        raise RequestError(f"{what} must be a JSON object, not {_kind_of(parsed)}")
    if len(body) <= MAX_CHECKED_BYTES and _num_keys(parsed) != _num_keys_written(body):
        raise _duplicate(body, what)
    return parsed


def refuse_unserved(request: msgspec.Struct, where: str = "") -> None:
    """Refuses fields lmserve knows but does not serve yet, unless they ask for nothing. `where`
    comes before their names: only those of the body itself are looked at for every route."""
    for name, neutral in _unserved(type(request)):
        value = getattr(request, name)
        if value is None or any(type(value) is type(x) and value == x for x in neutral):
            continue
        param = where + name
        raise InvalidField(f"{param} is not supported yet: leave it out", param=param)


def _unknown(parsed: dict[str, Any], kind: type[msgspec.Struct]) -> list[str]:
    found: dict[str, None] = {}  # a set that keeps its order
    for name in _walk(parsed, kind, ""):
        found[name] = None
        if len(found) == MAX_UNKNOWN:
            break
    return list(found)


def _walk(parsed: dict[str, Any], kind: type[msgspec.Struct], path: str) -> Iterator[str]:
    known = _known(kind)
    for name, value in parsed.items():
        if name not in known:
            yield path + name
        elif (inner := known[name]) is not None:
            for item in value if isinstance(value, list) else (value,):
                if isinstance(item, dict):
                    yield from _walk(item, inner, f"{path}{name}.")


@lru_cache
def _known(kind: type[msgspec.Struct]) -> dict[str, type[msgspec.Struct] | None]:
    """Field name to the struct that the field holds, by itself or in a list."""
    info = msgspec.inspect.type_info(kind)
    assert isinstance(info, msgspec.inspect.StructType)
    return {field.encode_name: _struct_in(field.type) for field in info.fields}


def _struct_in(held: msgspec.inspect.Type) -> type[msgspec.Struct] | None:
    match held:
        case msgspec.inspect.StructType():
            return held.cls
        case msgspec.inspect.Metadata():
            return _struct_in(held.type)
        case msgspec.inspect.ListType():
            return _struct_in(held.item_type)
        case msgspec.inspect.UnionType():
            return next(filter(None, map(_struct_in, held.types)), None)
        case _:
            return None


@lru_cache
def _unserved(kind: type[msgspec.Struct]) -> tuple[tuple[str, tuple[Any, ...]], ...]:
    info = msgspec.inspect.type_info(kind)
    assert isinstance(info, msgspec.inspect.StructType)
    return tuple(
        (field.name, field.type.extra[UNSERVED])
        for field in info.fields
        if isinstance(field.type, msgspec.inspect.Metadata)
        and field.type.extra
        and UNSERVED in field.type.extra
    )


def _too_many(body: bytes) -> str | None:
    """What there is more of than is parsed, told before it is made. What is in a string is text,
    whatever it looks like."""
    if (
        body.count(b'"') <= 2 * MAX_STRINGS
        and _num_braces(body) <= MAX_PARTS
        and body.count(b",") <= MAX_VALUES
    ):
        return None
    bare = body.replace(rb"\\", b"").replace(rb"\"", b"")
    if bare.count(b'"') > 2 * MAX_STRINGS:
        return f"{MAX_STRINGS} strings"
    outside = b"".join(bare.split(b'"')[::2])
    if _num_braces(outside) > MAX_PARTS:
        return f"{MAX_PARTS} objects and lists"
    return f"{MAX_VALUES} values" if outside.count(b",") > MAX_VALUES else None


def _num_braces(body: bytes) -> int:
    return body.count(b"{") + body.count(b"[")


def _num_keys(value: Any) -> int:
    """Keys in all objects of a parsed document. A loop: depth may exceed Python's own limit."""
    total, stack = 0, [value]
    while stack:
        item = stack.pop()
        if type(item) is dict:
            total += len(item)
            stack.extend(item.values())
        elif type(item) is list:
            stack.extend(item)
    return total


def _num_keys_written(body: bytes) -> int:
    return sum(map(bool, _STRING.findall(body)))


def _duplicate(body: bytes, what: str) -> RequestError:
    """Says which key comes twice: parses again, slowly, as only the refused pay for it."""
    twice: list[str] = []

    def check(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        parsed: dict[str, Any] = {}
        for name, value in pairs:
            if name in parsed:
                twice.append(name)
            parsed[name] = value
        return parsed

    try:
        json.loads(body, object_pairs_hook=check)
    except RecursionError:
        twice.clear()
    if not twice:
        return RequestError(f"{what} has a field twice in one object")
    return RequestError(f"{what} has {twice[0][:64]!r} twice in one object", param=twice[0][:64])


def _kind_of(value: Any) -> str:
    name = {list: "array", type(None): "null"}.get(type(value), type(value).__name__)
    return _KINDS[name]


def _invalid(error: msgspec.ValidationError, kind: type[msgspec.Struct]) -> InvalidField:
    """msgspec's message, `Expected … - at $.path`, in the words of an API."""
    match = _AT.fullmatch(str(error))
    text, param = (match[1], match[2]) if match else (str(error), "")
    if match := re.fullmatch(r"Expected `(.+)`, got `(.+)`", text):
        wanted = [_KINDS.get(name, name) for name in match[1].removesuffix(" | null").split(" | ")]
        got = _KINDS.get(match[2], match[2])
        got = "a boolean" if match[2] == "bool" else got
        return InvalidField(f"{param} must be {_any_of(wanted)}, not {got}", param=param)
    if match := re.fullmatch(r"Object missing required field `(.+)`", text):
        param = f"{param}.{match[1]}" if param else match[1]
        return InvalidField(f"{param} is required", param=param)
    if match := re.fullmatch(r"Invalid enum value (.+)", text):
        options = ", ".join(_options(kind).get(param.rpartition(".")[2], ()))
        return InvalidField(f"{param} must be one of {options}, not {match[1][:64]}", param=param)
    return InvalidField(f"{param}: {text}" if param else text, param=param or None)


def _any_of(options: list[str]) -> str:
    return options[0] if len(options) == 1 else f"{', '.join(options[:-1])} or {options[-1]}"


@lru_cache
def _options(kind: type[msgspec.Struct]) -> dict[str, tuple[str, ...]]:
    """Field name to allowed values, over the schemas of `kind` and all it holds."""
    _, components = msgspec.json.schema_components([kind], ref_template="{name}")
    return {
        name: tuple(schema["enum"])
        for component in components.values()
        for name, schema in component.get("properties", {}).items()
        if "enum" in schema
    }
