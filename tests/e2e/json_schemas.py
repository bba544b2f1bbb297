"""JSON schemas at random, over the keywords that are supported. Their documents are short."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

Schema = dict[str, Any]

NAMES = ("a", "name", "é", 'q"\\', "two words", "x/y~z")
FORMATS = ("date", "time", "date-time", "uuid", "ipv4", "email")
PATTERNS = ("^[a-c]{1,4}$", "^(x|yz)*$", r"^\d{2}-\d{2}$", '^[^"]?$', "^é+$")


@st.composite
def _bounds(draw: st.DrawFn, least: int, most: int) -> tuple[int, int]:
    low = draw(st.integers(least, most))
    return low, draw(st.integers(low, most))


@st.composite
def strings(draw: st.DrawFn) -> Schema:
    match draw(st.integers(0, 3)):
        case 0:
            return {"type": "string", "format": draw(st.sampled_from(FORMATS))}
        case 1:
            return {"type": "string", "pattern": draw(st.sampled_from(PATTERNS)), "maxLength": 12}
        case _:
            low, high = draw(_bounds(0, 8))
            return {"type": "string", "minLength": low, "maxLength": high}


@st.composite
def numbers(draw: st.DrawFn) -> Schema:
    kind = draw(st.sampled_from(["integer", "number"]))
    low, high = draw(_bounds(-300, 5000))
    schema: Schema = {"type": kind}
    schema[draw(st.sampled_from(["minimum", "exclusiveMinimum"]))] = low - 1
    schema[draw(st.sampled_from(["maximum", "exclusiveMaximum"]))] = high + 1
    if draw(st.booleans()):
        del schema["minimum" if "minimum" in schema else "exclusiveMinimum"]
        del schema["maximum" if "maximum" in schema else "exclusiveMaximum"]
        schema["multipleOf"] = draw(
            st.sampled_from([1, 2, 5, 7, 60] if kind == "integer" else [0.5, 0.25])
        )
    return schema


def values() -> st.SearchStrategy[Any]:
    return st.one_of(
        st.none(), st.booleans(), st.integers(-99, 99), st.just([1, {"k": []}]),
        st.sampled_from(["", "a", 'é"\\\n', "日本"]),
    )  # fmt: skip


def leaves() -> st.SearchStrategy[Schema]:
    return st.one_of(
        strings(),
        numbers(),
        st.just({"type": "boolean"}),
        st.just({"type": "null"}),
        st.builds(
            lambda low: {"type": ["integer", "null"], "minimum": low, "maximum": low + 9},
            st.integers(-9, 9),
        ),
        st.builds(lambda value: {"const": value}, values()),
        st.builds(lambda each: {"enum": each}, st.lists(values(), min_size=1, max_size=4)),
    )


@st.composite
def arrays(draw: st.DrawFn, inner: st.SearchStrategy[Schema]) -> Schema:
    low, high = draw(_bounds(0, 3))
    schema: Schema = {"type": "array", "items": draw(inner), "minItems": low, "maxItems": high}
    if draw(st.booleans()):
        schema["prefixItems"] = draw(st.lists(inner, min_size=1, max_size=2))
    return schema


@st.composite
def objects(draw: st.DrawFn, inner: st.SearchStrategy[Schema]) -> Schema:
    names = draw(st.lists(st.sampled_from(NAMES), unique=True, max_size=4))
    schema: Schema = {
        "type": "object",
        "properties": {name: draw(inner) for name in names},
        "required": [name for name in names if draw(st.booleans())],
        "additionalProperties": False,
        "title": "one", "description": "said to people", "default": {}, "examples": [1],
    }  # fmt: skip
    if draw(st.integers(0, 4)) == 0:
        schema["patternProperties"] = {"^k[0-9]$": draw(inner)}
    return schema


@st.composite
def unions(draw: st.DrawFn, inner: st.SearchStrategy[Schema]) -> Schema:
    match draw(st.integers(0, 2)):
        case 0:
            return {"anyOf": draw(st.lists(inner, min_size=1, max_size=3))}
        case 1:
            kinds = [
                {
                    "type": "object",
                    "properties": {"kind": {"const": kind}, "value": draw(inner)},
                    "required": ["kind", "value"],
                    "additionalProperties": False,
                }
                for kind in ("one", "two")
            ]
            return {"oneOf": kinds}
        case _:
            return {
                "type": "object",
                "allOf": [
                    {"properties": {"l": draw(inner)}, "required": ["l"]},
                    {"properties": {"r": draw(inner)}, "additionalProperties": True},
                ],
                "properties": {"l": {}, "r": {}},
                "additionalProperties": False,
            }


@st.composite
def trees(draw: st.DrawFn, inner: st.SearchStrategy[Schema]) -> Schema:
    """That hold their own kind."""
    tree = {
        "type": "object",
        "properties": {
            "value": draw(inner),
            "next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/tree~1x"}]},
        },
        "required": ["value", "next"],
        "additionalProperties": False,
    }
    return {"$defs": {"tree/x": tree}, "$ref": "#/$defs/tree~1x"}


def schemas() -> st.SearchStrategy[Schema]:
    nested = st.recursive(
        leaves(),
        lambda inner: st.one_of(arrays(inner), objects(inner), unions(inner)),
        max_leaves=5,
    )
    return st.one_of(
        objects(nested), objects(nested), unions(nested), arrays(nested), trees(leaves())
    )
