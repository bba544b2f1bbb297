"""Schemas, patterns and grammars of strangers: an InvalidField of one line, or a grammar that a
matcher takes, and goes on with or ends in words."""

from __future__ import annotations

import functools
import json
from concurrent.futures import Future
from typing import Any, Literal

from fuzz import scratch
from lmserve.bridge.assets import EOS_ID, VOCAB_SIZE, write_assets
from lmserve.errors import InvalidField
from lmserve.grammars import DeepThreads, load_tokenizer, new_matcher
from lmserve.text.structures.compiler import Compiler
from lmserve.types import Structure

KINDS: tuple[Literal["json_schema", "regex", "grammar"], ...] = ("json_schema", "regex", "grammar")
NUM_STEPS = 8  # tokens that a matcher is given
MAX_S = 20.0
WORDS = (
    *(
        b'"type"',
        b'"object"',
        b'"properties"',
        b'"$ref":"#"',
        b'"anyOf":[',
        b'"pattern":"',
        b"{9,}",
    ),
    *(b"(?:", b"[^a]*", b"\\p{L}", b"start: ", b'root ::= "a"', b"%json {", b"&", b"~", b"%ignore"),
)


def seeds() -> list[bytes]:
    """A byte says which; the text follows."""
    schema = {"type": "object", "properties": {"a": {"type": "integer", "minimum": 1}},
              "required": ["a"], "additionalProperties": {"enum": ["x", 2, None]}}  # fmt: skip
    tree = {"type": "array", "items": {"$ref": "#"}, "maxItems": 3}
    text = {"type": "string", "pattern": "^[a-c]{2,4}$", "maxLength": 9, "format": "date"}
    return [
        *(b"\0" + json.dumps(each).encode() for each in (schema, tree, text)),
        *(b"\1" + each for each in (b"(a|b)*c{2,5}", b"[^\\s]+@\\w+", b"((a+)+)+b", b"(?i:x)")),
        b'\2start: "a" b+\nb: /[0-9]{1,3}/ | "(" start ")"\n%ignore /\\s/',
        b'\2root ::= "a" (b | [0-9]+)\nb ::= "x" root?',
    ]


def check(data: bytes) -> None:
    kind = KINDS[(data[0] if data else 0) % len(KINDS)]
    value: Any = data[1:].decode("utf-8", "replace")
    if kind == "json_schema":
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return
    job: Future[None] = _threads().submit(_check, Structure(kind, value, "it"))
    job.result(MAX_S)


def _check(structure: Structure) -> None:
    compiler, tokenizer = _means()
    try:
        source = compiler.compile(structure)
    except InvalidField as error:
        assert "\n" not in error.message and len(error.message) < 1000, error.message
        return
    matcher = new_matcher(tokenizer, source)
    for step in range(NUM_STEPS):
        allowed = matcher.compute_bitmask()
        if matcher.is_error() or matcher.is_stopped():
            return
        ids = [id for id in range(VOCAB_SIZE) if allowed[id // 8] >> id % 8 & 1]
        assert ids, "nothing may come, and it is not over"
        matcher.consume_token(ids[step * 7 % len(ids)])


@functools.cache
def _threads() -> DeepThreads:
    return DeepThreads(1, "structures")


@functools.cache
def _means() -> tuple[Compiler, Any]:
    of = (str(write_assets(scratch.folder())), VOCAB_SIZE, (EOS_ID,))
    return Compiler(*of), load_tokenizer(*of)
