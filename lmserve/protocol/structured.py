"""What the answer has to be: the fields that say so, in each dialect, and their one meaning."""

from __future__ import annotations

from typing import Annotated, Any, Protocol

import orjson
from msgspec import Meta, Struct, field

from lmserve.errors import InvalidField
from lmserve.types import Structure

_FORMS = "text, json_object, json_schema, regex, regex_schema, choice or grammar"


class JsonSchemaFormat(Struct, kw_only=True):
    """The schema of a JSON answer, as OpenAI's chat wraps it."""

    name: str | None = None
    schema_: Annotated[
        dict[str, Any] | bool | None,
        Meta(description="The JSON schema; without one, any JSON object."),
    ] = field(default=None, name="schema")
    strict: Annotated[
        bool | None, Meta(description="Accepted: the answer always obeys the schema.")
    ] = None
    description: Annotated[str | None, Meta(description="Accepted, not used.")] = None


class ResponseFormat(Struct, kw_only=True):
    """The form of the answer."""

    type: Annotated[
        str,
        Meta(
            description="`text`, `json_object`, `json_schema`, `regex` (with `regex`), "
            "`regex_schema` (with `regex_schema`, as LMDeploy has it), `choice` or `grammar`."
        ),
    ]
    json_schema: JsonSchemaFormat | None = None
    schema_: Annotated[
        dict[str, Any] | bool | None,
        Meta(description="With `json_object`: the schema, as llama-server takes it."),
    ] = field(default=None, name="schema")
    regex: Annotated[str | None, Meta(description="The whole answer matches it.")] = None
    regex_schema: Annotated[str | None, Meta(description="LMDeploy's name of `regex`.")] = None
    choice: Annotated[list[str] | None, Meta(description="The answer is one of these.")] = None
    grammar: Annotated[str | None, Meta(description="In Lark, or GBNF (`root ::= …`).")] = None


class StructuredOutputs(Struct, kw_only=True):
    """vLLM's: give exactly one."""

    json: Annotated[
        dict[str, Any] | bool | str | None, Meta(description="A JSON schema, or its text.")
    ] = None
    json_object: Annotated[bool | None, Meta(description="Any JSON object.")] = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    structural_tag: Annotated[str | None, Meta(description="Not served.")] = None


class StructureFields(Protocol):
    """Where each dialect puts it in a request."""

    response_format: ResponseFormat | None
    structured_outputs: StructuredOutputs | None
    guided_json: dict[str, Any] | bool | str | None
    guided_regex: str | None
    guided_choice: list[str] | None
    guided_grammar: str | None


def structure_of(fields: StructureFields) -> Structure | None:
    """What they ask for, if anything. Raises InvalidField where that is two things."""
    found: list[Structure] = []
    if fields.response_format is not None:
        formed = structure_of_format(fields.response_format)
        if formed is not None:
            found.append(formed)
    if fields.structured_outputs is not None:
        found += _of_outputs(fields.structured_outputs)
    for kind in ("json", "regex", "choice", "grammar"):
        value = getattr(fields, f"guided_{kind}")
        if value is not None:
            found.append(_structure(kind, value, f"guided_{kind}"))
    if len(found) > 1:
        raise InvalidField(
            f"{found[0].param} and {found[1].param} both say what the answer has to be: give one",
            param=found[1].param,
        )
    return found[0] if found else None


def structure_of_format(form: ResponseFormat, where: str = "response_format") -> Structure | None:
    """Of the object that OpenAI calls `response_format`; `where` is its name here."""
    match form.type:
        case "text":
            return None
        case "json_object" if form.schema_ is not None:
            return Structure("json_schema", form.schema_, f"{where}.schema")
        case "json_object":
            return Structure("json_object", None, where)
        case "json_schema":
            return structure_of_schema(form.json_schema, f"{where}.json_schema")
        case "regex" | "regex_schema" | "choice" | "grammar" as kind:
            value = getattr(form, kind)
            if value is None and kind == "regex":
                value, kind = form.regex_schema, "regex_schema"
            if value is None:
                raise InvalidField(
                    f"{where}.{form.type} is missing: it goes with the type", param=where
                )
            return _structure(kind.removesuffix("_schema"), value, f"{where}.{kind}")
        case _:
            raise InvalidField(
                f"{where}.type is {form.type[:50]!r}: it must be {_FORMS}", param=f"{where}.type"
            )


def structure_of_schema(given: JsonSchemaFormat | None, where: str) -> Structure:
    """Of the object that wraps a schema."""
    if given is None:
        raise InvalidField(f"{where} is missing: it goes with the type json_schema", param=where)
    if given.schema_ is None:
        return Structure("json_object", None, where)
    return Structure("json_schema", given.schema_, f"{where}.schema")


def _of_outputs(given: StructuredOutputs) -> list[Structure]:
    where = "structured_outputs"
    if given.structural_tag is not None:
        raise InvalidField(
            f"{where}.structural_tag is not supported: give a grammar, or tools",
            param=f"{where}.structural_tag",
        )
    found = [
        _structure(kind, value, f"{where}.{kind}")
        for kind in ("json", "regex", "choice", "grammar")
        if (value := getattr(given, kind)) is not None
    ]
    if given.json_object:
        found.append(Structure("json_object", None, f"{where}.json_object"))
    return found


def _structure(kind: str, value: Any, param: str) -> Structure:
    match kind:
        case "json":
            return Structure("json_schema", _parsed(value, param), param)
        case "regex":
            return Structure("regex", value, param)
        case "choice":
            return Structure("choice", value, param)
        case _:
            return Structure("grammar", value, param)


def _parsed(schema: Any, param: str) -> Any:
    """A schema may come as a text."""
    if not isinstance(schema, str):
        return schema
    try:
        return orjson.loads(schema)
    except orjson.JSONDecodeError as error:
        raise InvalidField(
            f"{param} is a text that is not valid JSON: {error}", param=param
        ) from None
