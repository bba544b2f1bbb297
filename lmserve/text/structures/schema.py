"""JSON schemas: what is refused before llguidance reads one.

The library refuses most of what it cannot do, naming it; what it would pass over in silence, take
long for or follow too deep is refused here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from copy import deepcopy
from decimal import Decimal
from typing import Any

from lmserve.errors import InvalidField
from lmserve.text.structures.endless import find_endless

MAX_DEPTH = 100  # brackets within brackets
MAX_SCHEMA_CHARS = 256 * 1024  # of all names and texts
MAX_VALUES = 50_000  # of any kind, in the whole document
MAX_SCHEMAS = 4_000
MAX_PROPERTIES = 1_000  # of one object
MAX_ENUM = 10_000
MAX_PATTERN_CHARS = 10_000
MAX_REPEATS = 10_000
MAX_MULTIPLE = 20_000  # the least common multiple of all `multipleOf`, in units of their last digit

Schema = dict[str, Any]

_DATE = (
    r"(\d{3}[1-9]|\d{2}[1-9]\d|\d[1-9]\d{2}|[1-9]\d{3})-"
    r"((0[13578]|1[02])-(0[1-9]|[12]\d|3[01])|(0[469]|11)-(0[1-9]|[12]\d|30)|02-(0[1-9]|1\d|2[0-8]))"
    r"|(\d{2}(0[48]|[2468][048]|[13579][26])|(0[48]|[2468][048]|[13579][26])00)-02-29"
)
_TIME = r"([01]\d|2[0-3]):[0-5]\d:[0-5]\d(\.\d{1,9})?(Z|[+-]([01]\d|2[0-3]):[0-5]\d)"
_DATES = {"date": f"^({_DATE})$", "date-time": f"^({_DATE})T{_TIME}$"}

# Keywords of the standard, in any of its drafts, that are not enforced.
_REFUSED = frozenset(
    {
        *("not", "if", "then", "else", "uniqueItems", "propertyNames"),
        *("contains", "minContains", "maxContains"),
        *("dependencies", "dependentRequired", "dependentSchemas"),
        *("unevaluatedItems", "unevaluatedProperties"),
        *("contentEncoding", "contentMediaType", "contentSchema"),
        *("$dynamicRef", "$recursiveRef", "divisibleBy", "disallow", "extends"),
    }
)
_NAMED = ("properties", "patternProperties", "$defs", "definitions")
_LISTED = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
_SINGLE = ("items", "additionalItems", "additionalProperties")
_NUMBERS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
_COUNTS = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")


def checked_schema(schema: object, param: str) -> Schema:
    """The schema, fit for the library. Raises InvalidField."""
    if isinstance(schema, bool):
        if not schema:
            raise InvalidField(f"{param} is false: nothing matches that", param=param)
        return {}
    if not isinstance(schema, dict):
        raise InvalidField(f"{param} must be a JSON schema, an object", param=param)
    _check_size(schema, param)
    schema = deepcopy(schema)  # as deep as that lets it be
    found: dict[int, tuple[Schema, str]] = {}
    multiples: set[int] = set()
    stack: list[tuple[object, str]] = [(schema, "")]
    while stack:
        each, path = stack.pop()
        where = f"{param}: {path[1:] or 'it'}"
        if isinstance(each, bool):
            continue
        if not isinstance(each, dict):
            raise InvalidField(f"{where} must be a schema, an object", param=param)
        found[id(each)] = (each, path)
        if len(found) > MAX_SCHEMAS:
            raise InvalidField(f"{param} has more than {MAX_SCHEMAS} schemas in it", param=param)
        problem = _problem(each)
        if problem is not None:
            raise InvalidField(f"{where} {problem}", param=param)
        if (multiple := each.get("multipleOf")) is not None:
            multiples.add(_digits(multiple))
        _rewrite(each)
        stack.extend((sub, path + name) for name, sub in subschemas(each))
    if len(multiples) and math.lcm(*multiples) > MAX_MULTIPLE:
        raise InvalidField(
            f"{param}: multipleOf is too fine: the least common multiple of all must be at most "
            f"{MAX_MULTIPLE} units of the last digit",
            param=param,
        )
    endless = find_endless(schema, found)
    if endless is not None:
        raise InvalidField(
            f"{param}: {endless[1:] or 'it'} requires itself, so no document that matches has an "
            "end",
            param=param,
        )
    if not any(_composes(each) for each, _ in found.values()):
        for each, _ in found.values():
            _close(each)
    return schema


def subschemas(schema: Schema) -> Iterator[tuple[str, object]]:
    """The schemas directly in one, each with where it is."""
    for keyword in _NAMED:
        if isinstance(named := schema.get(keyword), dict):
            for name, sub in named.items():
                yield f".{keyword}.{name}", sub
    for keyword in _LISTED:
        if isinstance(listed := schema.get(keyword), list):
            for index, sub in enumerate(listed):
                yield f".{keyword}[{index}]", sub
    for keyword in _SINGLE:
        if isinstance(schema.get(keyword), dict | bool):
            yield f".{keyword}", schema[keyword]


def _problem(schema: Schema) -> str | None:
    """What is wrong with one schema, less those within it."""
    for keyword in schema.keys() & _REFUSED:
        if keyword != "uniqueItems" or schema[keyword] is not False:
            return f"has the keyword {keyword}, which is not supported"
    for keyword in _NAMED:
        if not isinstance(schema.get(keyword, {}), dict):
            return f"has {keyword} that is not an object"
    for keyword in ("allOf", "anyOf", "oneOf", "prefixItems", "enum"):
        if not isinstance(schema.get(keyword, []), list):
            return f"has {keyword} that is not a list"
    for keyword in (*_NUMBERS, *_COUNTS):
        value = schema.get(keyword, 0)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return f"has {keyword} that is not a number"
        if not abs(value) < 2**53:  # NaN too
            return f"has {keyword} that is too large"
    required = schema.get("required", [])
    if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
        return "has required that is not a list of names"
    if len(schema.get("properties", ())) > MAX_PROPERTIES:
        return f"has {len(schema['properties'])} properties: give at most {MAX_PROPERTIES}"
    if len(schema.get("enum", ())) > MAX_ENUM:
        return f"has an enum of {len(schema['enum'])} values: give at most {MAX_ENUM}"
    ref = schema.get("$ref", "#")
    if not isinstance(ref, str) or not ref.startswith("#"):
        return (
            f"has the $ref {str(ref)[:100]!r}: only references within it are followed (#/$defs/…)"
        )
    for pattern in (schema.get("pattern", ""), *schema.get("patternProperties", ())):
        if not isinstance(pattern, str):
            return "has a pattern that is not a text"
        if (problem := pattern_problem(pattern, MAX_PATTERN_CHARS)) is not None:
            return f"has a pattern that {problem}"
    return None


def _rewrite(schema: Schema) -> None:
    """Takes out what asks for nothing, and the library's own switches. Its dates have 31 days in
    every month: they are given by patterns here, where they may be."""
    schema.pop("uniqueItems", None)
    schema.pop("x-guidance", None)
    pattern = _DATES.get(str(schema.get("format")))
    if pattern is not None and "pattern" not in schema:
        del schema["format"]
        schema["pattern"] = pattern


def _composes(schema: Schema) -> bool:
    """Whether its properties and another schema's are asked of one object."""
    others = schema.keys() & {"allOf", "anyOf", "oneOf", "$ref"}
    return "allOf" in others or (bool(others) and "properties" in schema)


def _close(schema: Schema) -> None:
    """An object that names its properties, and says nothing of others, gets no others: what a
    model would make up there is of no use to anybody."""
    properties = schema.get("properties")
    if not properties or schema.keys() & {"additionalProperties", "patternProperties"}:
        return
    names = {*properties}
    if names >= {*schema.get("required", ())} and schema.get("minProperties", 0) <= len(names):
        schema["additionalProperties"] = False


def pattern_problem(pattern: str, max_chars: int) -> str | None:
    """Of a regular expression."""
    if len(pattern) > max_chars:
        return f"has {len(pattern)} characters: give at most {max_chars}"
    at = -1
    while (at := pattern.find("{", at + 1)) >= 0:
        for count in pattern[at + 1 : at + 50].partition("}")[0].split(","):
            if (count := count.strip()).isdecimal() and int(count) > MAX_REPEATS:
                return f"repeats {count[:20]} times: at most {MAX_REPEATS} are taken"
    return None


def _check_size(schema: Schema, param: str) -> None:
    """A loop: the depth may exceed Python's own limit."""
    num_chars = num_values = 0
    stack: list[tuple[Any, int]] = [(schema, 1)]
    while stack:
        value, depth = stack.pop()
        num_values += 1
        if depth > MAX_DEPTH:
            raise InvalidField(
                f"{param} is nested deeper than {MAX_DEPTH}: flatten it, or use $ref", param=param
            )
        if isinstance(value, str):
            num_chars += len(value)
        elif isinstance(value, dict):
            num_chars += sum(map(len, value))
            stack.extend((item, depth + 1) for item in value.values())
        elif isinstance(value, list):
            stack.extend((item, depth + 1) for item in value)
        if num_chars > MAX_SCHEMA_CHARS or num_values + len(stack) > MAX_VALUES:
            raise InvalidField(
                f"{param} is too large: at most {MAX_SCHEMA_CHARS} characters and {MAX_VALUES} "
                "values are taken",
                param=param,
            )


def _digits(multiple: float) -> int:
    """0.25 is 25 of its last digit."""
    digits = Decimal(repr(multiple)).normalize().as_tuple()
    whole: int = int("".join(map(str, digits.digits))) * 10 ** max(int(digits.exponent), 0)
    return whole
