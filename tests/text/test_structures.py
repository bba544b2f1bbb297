"""What is asked for becomes a grammar, or is refused at once with the reason."""

from __future__ import annotations

import json
import re
import threading
from pathlib import Path
from typing import Any

import pytest
from llguidance import LLMatcher

from lmserve.bridge.assets import EOS_ID, VOCAB_SIZE, write_assets
from lmserve.errors import InvalidField
from lmserve.grammars import DeepThreads, load_tokenizer, new_matcher
from lmserve.text.structures.compiler import Compiler
from lmserve.text.structures.source import json_rule
from lmserve.types import Structure


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_assets(tmp_path_factory.mktemp("assets"))


@pytest.fixture(scope="module")
def compiler(tokenizer_file: Path) -> Compiler:
    return Compiler(str(tokenizer_file), VOCAB_SIZE, (EOS_ID,))


def deep(num: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(num):
        schema = {"type": "array", "items": schema}
    return schema


def rules(num: int, link: str = "r{0}: r{1}") -> str:
    chain = "\n".join(link.format(at, at + 1) for at in range(num))
    name = link.partition("{")[0]
    return f'start: {name}0\n{chain}\n{name}{num}: "a"'


def objects(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


SELF = {"$defs": {"a": objects(x={"$ref": "#/$defs/a"})}, "$ref": "#/$defs/a"}
BOTH = {"$defs": {"a": objects(x={"$ref": "#/$defs/b"}), "b": objects(y={"$ref": "#/$defs/a"})}}

REFUSED: dict[str, tuple[Any, Any, str]] = {
    "a million repeats": ("regex", "a{1000000}", "repeats 1000000 times"),
    "a million characters": ("regex", "a" * 10**6, "1000000 characters"),
    "a billion in steps": ("regex", "a{1,99999}", "repeats 99999 times"),
    "look-behind": ("regex", "(?<=a)b", "look-behind"),
    "look-ahead": ("regex", "(?=a)b", "look-ahead"),
    "back-reference": ("regex", r"(a)\1", "backreferences"),
    "word boundary": ("regex", r"\bx", "lookarounds"),
    "half a pair": ("regex", "\ud800", "surrogate"),
    "never": ("regex", r"[^\s\S]", "no text can match"),
    "deep regex": ("regex", "(" * 9000 + "a" + ")" * 9000, "nested"),
    "open group": ("regex", "(a", "unclosed group"),
    "empty regex": ("regex", "", "not empty"),
    "30k parentheses": ("grammar", f'start: {"(" * 30000}"a"{")" * 30000}', "nested"),
    "left recursion with no end": ("grammar", 'start: start "a"', "no text can match"),
    "no terminal": ("grammar", "start: x\nx: x", "no text can match"),
    "empty grammar": ("grammar", "", "not empty"),
    "blank grammar": ("grammar", "  \n", "no start rule"),
    "no start": ("grammar", 'foo: "a"', "no start rule"),
    "unknown rule": ("grammar", "start: foo", "1(8): unknown name"),
    "long chain": ("grammar", rules(3000), "more than 500 rules"),
    "large chain": ("grammar", rules(20000), "characters"),
    "exponential": ("grammar", rules(40, "R{0}: R{1} R{1}"), "too big"),
    "bad syntax": ("grammar", "start: (((", "Expected"),
    "bad GBNF": ("grammar", "root ::= (((", "GBNF"),
    "deep GBNF": ("grammar", f'root ::= {"(" * 30000}"a"{")" * 30000}', "GBNF"),
    "hidden schema": ("grammar", 'start: %json {"type": "array", "uniqueItems": true}', "%json"),
    "switches": ("grammar", '%llguidance {"no_forcing": false}\nstart: "a"', "%llguidance"),
    "10k deep": ("json_schema", deep(10000), "nested deeper"),
    "self": ("json_schema", {"$ref": "#"}, "requires itself"),
    "requires itself": ("json_schema", SELF, "requires itself"),
    "requires each other": ("json_schema", {**BOTH, "$ref": "#/$defs/a"}, "requires itself"),
    "remote": ("json_schema", {"$ref": "http://example.com/a.json"}, "only references within"),
    "no such definition": ("json_schema", {"$ref": "#/$defs/a"}, "does not exist"),
    "1e5 enum": ("json_schema", {"enum": [f"v{at}" for at in range(10**5)]}, "too large"),
    "2e4 enum": ("json_schema", {"enum": [f"v{at}" for at in range(20000)]}, "enum of 20000"),
    "no enum": ("json_schema", {"enum": []}, "Unsatisfiable"),
    "bad type": ("json_schema", {"type": "strng"}, "Invalid type: strng"),
    "bad pattern": ("json_schema", {"pattern": "(", "type": "string"}, "unclosed group"),
    "pattern repeats": (
        "json_schema",
        objects(a={"pattern": "a{99999}"}),
        "properties.a has a pat",
    ),
    "minimum": ("json_schema", {"type": "integer", "minimum": 5, "maximum": 3}, "minimum (5)"),
    "length": ("json_schema", {"type": "string", "minLength": 5, "maxLength": 3}, "minLength"),
    "items": ("json_schema", {"type": "array", "minItems": 5, "maxItems": 3}, "minItems"),
    "between": (
        "json_schema",
        {"type": "integer", "exclusiveMinimum": 3, "exclusiveMaximum": 4},
        "no integer",
    ),
    "no multiple": (
        "json_schema",
        {"type": "integer", "minimum": 1, "maximum": 2, "multipleOf": 5},
        "multiple of 5",
    ),
    "fine multiple": ("json_schema", {"type": "integer", "multipleOf": 1000003}, "multipleOf"),
    "fine together": (
        "json_schema",
        {"allOf": [{"type": "integer", "multipleOf": 997}, {"multipleOf": 991}]},
        "multipleOf",
    ),
    "many properties": ("json_schema", objects(**{f"p{i}": {} for i in range(5000)}), "properties"),
    "false": ("json_schema", False, "nothing matches"),
    "false property": ("json_schema", objects(a=False), "unsatisfiable"),
    "a list": ("json_schema", [1], "must be a JSON schema"),
    "unknown format": ("json_schema", {"type": "string", "format": "foo"}, "Unknown format: foo"),
    "huge bound": ("json_schema", {"type": "integer", "minimum": -(10**30)}, "too large"),
    "draft 4": ("json_schema", {"minimum": 1, "exclusiveMinimum": True}, "exclusiveMinimum"),
    "draft 3": ("json_schema", {"properties": {"a": {"required": True}}}, "required"),
    "no choice": ("choice", [], "at least one"),
    "an empty choice": ("choice", ["a", ""], "rf[1]"),
    "no text": ("choice", ["a", 1], "rf[1]"),
    "1e5 choices": ("choice", ["a"] * 10**5, "100000 texts"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_refused_in_words(compiler: Compiler, name: str) -> None:
    kind, value, words = REFUSED[name]
    with pytest.raises(InvalidField) as caught:
        compiler.compile(Structure(kind, value, "rf"))
    assert words in caught.value.message
    assert caught.value.message.startswith("rf")
    assert "\n" not in caught.value.message
    assert len(caught.value.message) < 400
    assert caught.value.param is not None and caught.value.param.startswith("rf")


UNSUPPORTED = {
    "not": {"type": "string"},
    "if": {},
    "then": {},
    "else": {},
    "uniqueItems": True,
    "propertyNames": {},
    "contains": {},
    "minContains": 1,
    "maxContains": 1,
    "dependencies": {},
    "dependentRequired": {},
    "dependentSchemas": {},
    "unevaluatedItems": False,
    "unevaluatedProperties": False,
    "contentEncoding": "base64",
    "contentMediaType": "application/json",
    "contentSchema": {},
    "$dynamicRef": "#",
    "$recursiveRef": "#",
    "divisibleBy": 2,
    "disallow": "string",
    "extends": {},
}


@pytest.mark.parametrize("keyword", UNSUPPORTED)
@pytest.mark.parametrize("lenient", [{}, {"x-guidance": {"lenient": True}}])
def test_a_keyword_that_is_not_enforced_is_refused_wherever_it_is(
    compiler: Compiler, keyword: str, lenient: dict[str, Any]
) -> None:
    schema = {"$defs": {"d": {"items": [{keyword: UNSUPPORTED[keyword]}]}}, **lenient}
    with pytest.raises(
        InvalidField, match=re.escape(f"$defs.d.items[0] has the keyword {keyword}")
    ):
        compiler.compile(Structure("json_schema", schema))


def test_a_name_is_not_a_keyword(compiler: Compiler) -> None:
    schema = {**objects(**{"not": {"const": {"if": 1}}}), "default": {"contains": 1}}
    compiler.compile(Structure("json_schema", {**schema, "x-mine": {"not": 1}, "nullable": True}))
    compiler.compile(Structure("json_schema", {"type": "array", "uniqueItems": False}))


def accepts(tokenizer_file: Path, source: str, text: str) -> bool:
    """As the whole answer."""
    tokenizer = load_tokenizer(str(tokenizer_file), VOCAB_SIZE, (EOS_ID,))
    matcher = new_matcher(tokenizer, source)
    return matcher.try_consume_tokens(list(text.encode())) == len(text.encode()) and (
        matcher.is_accepting()
    )


@pytest.mark.parametrize(
    ("kind", "value", "good", "bad"),
    [
        ("json_object", None, ["{}", '{"a": [1, {"b": null}]}'], ["[]", "1", "{", '{"a":1}']),
        ("json_schema", objects(a={"type": "integer"}), ['{"a": 1}'], ['{"a": "1"}', "{}"]),
        (
            "json_schema",
            {"const": {"uniqueItems": False, "x-guidance": 1}},
            ['{"uniqueItems": false, "x-guidance": 1}'],
            ["{}"],
        ),
        (
            "json_schema",
            {"type": "string", "format": "date"},
            ['"2024-02-29"', '"2000-02-29"', '"0400-02-29"', '"2026-11-30"', '"0001-01-31"'],
            ['"2007-02-29"', '"1900-02-29"', '"2026-11-31"', '"2026-02-30"', '"0000-01-01"', '"x"'],
        ),
        (
            "json_schema",
            {"type": "string", "format": "date-time"},
            ['"2024-02-29T23:59:59Z"', '"2026-11-30T00:00:00.5+14:00"'],
            ['"2023-02-29T00:00:00Z"', '"2026-11-30T24:00:00Z"', '"2026-11-30"'],
        ),
        ("json_schema", True, ["1", '"a"', "{}"], ["a"]),
        ("json_schema", {"type": "array"}, ["[]", "[1, 2]"], ["[ ]", "[1,2]", "[1,  2]"]),
        ("json_schema", {"type": "string", "pattern": "^a/b$"}, ['"a/b"'], ['"xa/b"']),
        ("json_schema", {"type": "string", "pattern": "a"}, ['"xax"'], ['"xbx"']),
        ("regex", "a/b|c\nd", ["a/b", "c\nd"], ["a", "a/bc"]),
        ("regex", "^ab+?$", ["ab", "abb"], ["a", "abc"]),
        ("regex", "(a+)+b", ["aaab"], ["b", "aaa"]),
        ("choice", ['a"\n', "é", "\\d", "日本😀"], ['a"\n', "é", "\\d", "日本😀"], ["1", "e"]),
        ("grammar", 'start: start "a" | "b"', ["b", "baa"], ["a", "ab"]),
        ("grammar", 'root ::= "yes" | "no" x\nx ::= [a-c]+', ["yes", "noab"], ["no", "yesa"]),
        ("grammar", rules(400), ["a"], ["b"]),
    ],
)
def test_what_is_asked_for_is_what_is_accepted(
    compiler: Compiler, tokenizer_file: Path, kind: Any, value: Any, good: list[str], bad: list[str]
) -> None:
    source = compiler.compile(Structure(kind, value))
    assert [text for text in good if not accepts(tokenizer_file, source, text)] == []
    assert [text for text in bad if accepts(tokenizer_file, source, text)] == []


@pytest.mark.parametrize(
    ("schema", "open_"),
    [
        (objects(a={"type": "integer"}), False),
        ({**objects(a={"type": "integer"}), "additionalProperties": True}, True),
        ({**objects(a={"type": "integer"}), "required": ["a", "b"]}, True),
        ({"allOf": [objects(a={"type": "integer"}), objects(b={"type": "integer"})]}, True),
        ({"$defs": {"x": objects(a={"type": "integer"})}, "$ref": "#/$defs/x"}, False),
        ({"type": "object"}, True),
    ],
)
def test_an_object_that_names_its_properties_gets_no_others(
    tokenizer_file: Path, schema: dict[str, Any], open_: bool
) -> None:
    source = json_rule(schema, "schema")
    text = '{"a": 1, "b": 2}'
    assert (
        accepts(tokenizer_file, f'%llguidance {{"no_forcing": true}}\nstart: {source}', text)
        is open_
    )


def test_a_json_rule_stands_among_other_rules(compiler: Compiler, tokenizer_file: Path) -> None:
    rule = json_rule(objects(a={"type": "integer"}), "tools[0]")
    source = compiler.check(f'start: "<" call ">"\ncall: {rule}\n', "tools")
    assert accepts(tokenizer_file, source, '<{"a": 1}>')
    with pytest.raises(InvalidField, match=r"tools\[1\]"):
        json_rule({"not": {}}, "tools[1]")


def test_long_chains_do_not_end_the_process(compiler: Compiler) -> None:
    """The library follows them by recursion."""
    chain = {
        f"d{at}": {"anyOf": [{"$ref": f"#/$defs/d{at + 1}"}, {"type": "null"}]} for at in range(900)
    }
    schema = {"$defs": {**chain, "d900": {"type": "integer"}}, "$ref": "#/$defs/d0"}
    threads = DeepThreads(1, "deep")
    before = threading.stack_size()
    assert "d900" in threads.submit(compiler.compile, Structure("json_schema", schema)).result()
    assert threading.stack_size() == before
    threads.close()


def test_a_mask_of_a_long_forced_text_is_no_work(compiler: Compiler, tokenizer_file: Path) -> None:
    """A text that is the only one possible is not tokenised for each mask: that took seconds."""
    source = compiler.compile(Structure("regex", "((a{1000}){1000}){1000}"))
    tokenizer = load_tokenizer(str(tokenizer_file), VOCAB_SIZE, (EOS_ID,))
    assert isinstance(new_matcher(tokenizer, source), LLMatcher)
    assert new_matcher(tokenizer, source).compute_ff_tokens() == []


def test_any_schema_in_text_is_the_same_schema(compiler: Compiler) -> None:
    schema = objects(**{"é\n%json": {"const": "</think>\u2028"}})
    source = compiler.compile(Structure("json_schema", schema))
    assert json.loads(source.partition("%json ")[2])["properties"] == schema["properties"]
