from __future__ import annotations

from typing import Any

import orjson
import pytest

from lmserve.errors import InvalidField
from lmserve.protocol.common import SamplingFields
from lmserve.protocol.decode import decode
from lmserve.protocol.structured import structure_of
from lmserve.types import Structure

SCHEMA = {"type": "object"}


def asked(**fields: Any) -> Structure | None:
    request, unknown = decode(orjson.dumps(fields), SamplingFields)
    assert unknown == []
    return structure_of(request)


@pytest.mark.parametrize(
    ("fields", "kind", "value", "param"),
    [
        ({"type": "json_object"}, "json_object", None, "response_format"),
        (
            {"type": "json_object", "schema": SCHEMA},
            "json_schema",
            SCHEMA,
            "response_format.schema",
        ),
        (
            {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA, "strict": True}},
            "json_schema",
            SCHEMA,
            "response_format.json_schema.schema",
        ),
        (
            {"type": "json_schema", "json_schema": {"name": "a", "description": "b"}},
            "json_object",
            None,
            "response_format.json_schema",
        ),
        ({"type": "regex", "regex": "a+"}, "regex", "a+", "response_format.regex"),
        (
            {"type": "regex_schema", "regex_schema": "a"},
            "regex",
            "a",
            "response_format.regex_schema",
        ),
        ({"type": "choice", "choice": ["a"]}, "choice", ["a"], "response_format.choice"),
        (
            {"type": "grammar", "grammar": "start: A"},
            "grammar",
            "start: A",
            "response_format.grammar",
        ),
    ],
)
def test_each_type_of_response_format(fields: Any, kind: Any, value: Any, param: str) -> None:
    assert asked(response_format=fields) == Structure(kind, value, param)


@pytest.mark.parametrize(
    ("name", "sent", "kind", "value"),
    [
        ("json", SCHEMA, "json_schema", SCHEMA),
        ("json", '{"type": "object"}', "json_schema", SCHEMA),
        ("json", "true", "json_schema", True),
        ("regex", "a+", "regex", "a+"),
        ("choice", ["a", "b"], "choice", ["a", "b"]),
        ("grammar", "start: A", "grammar", "start: A"),
    ],
)
def test_vllms_words_old_and_new(name: str, sent: Any, kind: Any, value: Any) -> None:
    assert asked(**{f"guided_{name}": sent}) == Structure(kind, value, f"guided_{name}")
    param = f"structured_outputs.{name}"
    assert asked(structured_outputs={name: sent}) == Structure(kind, value, param)


def test_nothing_is_asked_for() -> None:
    assert asked() is None
    assert asked(response_format={"type": "text"}, structured_outputs={"json": None}) is None
    assert asked(structured_outputs={"json_object": False}, guided_json=None) is None


def test_any_object_in_vllms_words() -> None:
    structure = asked(structured_outputs={"json_object": True})
    assert structure == Structure("json_object", None, "structured_outputs.json_object")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "regex"}}, "response_format"),
        ({"response_format": {"type": "json_object"}, "guided_regex": "a"}, "guided_regex"),
        ({"guided_json": {}, "guided_choice": ["a"]}, "guided_choice"),
        ({"structured_outputs": {"json": {}, "regex": "a"}}, "structured_outputs.regex"),
        ({"structured_outputs": {"structural_tag": "{}"}}, "structured_outputs.structural_tag"),
        ({"guided_json": "{"}, "guided_json"),
        ({"guided_json": "[" * 100_000}, "guided_json"),
    ],
)
def test_what_cannot_be_meant_is_refused(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidField) as caught:
        asked(**fields)
    assert caught.value.param == param
