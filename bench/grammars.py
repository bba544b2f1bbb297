"""What a grammar costs: compiling it, and a mask a token, by llguidance and, where it is
installed, by xgrammar (which needs torch).

    .venv/bin/python bench/grammars.py [--model MODEL] [--rounds 5] [--xgrammar-path DIR]

`--model` is what `lmserve serve` takes; its tokenizer is used, nothing is run.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lmserve.grammars import load_tokenizer, new_matcher
from lmserve.text.structures.source import source_of
from lmserve.types import Structure

KINDS = ["string", "integer", "boolean", "number"]
WIDE = {
    "type": "object",
    "properties": {f"p{at}": {"type": KINDS[at % 4]} for at in range(100)},
    "required": [f"p{at}" for at in range(100)],
    "additionalProperties": False,
}
WIDE_TEXT = json.dumps({f"p{at}": ["hello there", 12345, True, 1.5][at % 4] for at in range(100)})
TREE = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "name": {"type": "string", "maxLength": 20},
                "kind": {"enum": [f"kind {at}" for at in range(50)]},
                "inner": {"type": "array", "items": {"$ref": "#/$defs/node"}},
            },
            "required": ["name", "kind", "inner"],
            "additionalProperties": False,
        }
    },
    "$ref": "#/$defs/node",
}
LEAF = {"name": "a leaf", "kind": "kind 7", "inner": []}
TREE_TEXT = json.dumps({"name": "root", "kind": "kind 1", "inner": [{**LEAF, "inner": [LEAF] * 4}]})
ANY_TEXT = json.dumps({"any": ["thing", {"at": 1.25e3, "all": None}], "text": "of some length"})
DATE = r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(\.\d{1,6})?(Z|[+-]\d{2}:\d{2})"
CASES: dict[str, tuple[str, Any, str]] = {
    "100 properties": ("json_schema", WIDE, WIDE_TEXT),
    "a tree": ("json_schema", TREE, TREE_TEXT),
    "any object": ("json_object", None, ANY_TEXT),
    "a date (regex)": ("regex", DATE, "2026-11-23T10:20:30.123Z"),
}
Masker = Callable[[], Any]
Taker = Callable[[int], bool]


class Llguidance:
    name = "llguidance"

    def __init__(self, tokenizer_file: str, vocab_size: int, eos_ids: tuple[int, ...]):
        self._tokenizer = load_tokenizer(tokenizer_file, vocab_size, eos_ids)
        self._bits = np.zeros((self._tokenizer.vocab_size + 31) // 32, dtype=np.int32)

    def compile(self, kind: Any, value: Any) -> tuple[Masker, Taker]:
        matcher = new_matcher(self._tokenizer, source_of(Structure(kind, value)))
        address, num_bytes = self._bits.ctypes.data, self._bits.nbytes
        return lambda: matcher.unsafe_compute_mask_ptr(address, num_bytes), matcher.consume_token


class Xgrammar:
    name = "xgrammar"

    def __init__(self, tokenizer_file: str, vocab_size: int, eos_ids: tuple[int, ...]):
        import xgrammar
        from transformers import PreTrainedTokenizerFast

        self._xgrammar = xgrammar
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=tokenizer_file)
        info = xgrammar.TokenizerInfo.from_huggingface(
            tokenizer, vocab_size=vocab_size, stop_token_ids=list(eos_ids)
        )
        self._compiler = xgrammar.GrammarCompiler(info, max_threads=2, cache_enabled=False)
        self._bits = xgrammar.allocate_token_bitmask(1, vocab_size)

    def compile(self, kind: Any, value: Any) -> tuple[Masker, Taker]:
        compiler = self._compiler
        match kind:
            case "json_schema":
                compiled = compiler.compile_json_schema(json.dumps(value), any_whitespace=False)
            case "json_object":
                compiled = compiler.compile_json_schema('{"type": "object"}', any_whitespace=False)
            case _:
                compiled = compiler.compile_regex(value)
        matcher = self._xgrammar.GrammarMatcher(compiled)
        return lambda: matcher.fill_next_token_bitmask(self._bits), matcher.accept_token


def measured(backend: Any, kind: str, value: Any, ids: list[int]) -> tuple[float, list[float]]:
    """Milliseconds to compile with the first mask, and microseconds of every mask after."""
    begun = time.perf_counter()
    mask, take = backend.compile(kind, value)
    mask()
    compile_ms = (time.perf_counter() - begun) * 1e3
    masks_us = []
    for id in ids:
        begun = time.perf_counter()
        mask()
        masks_us.append((time.perf_counter() - begun) * 1e6)
        if not take(id):
            raise SystemExit(f"{backend.name} refuses a token of its own text")
    return compile_ms, masks_us


def rows(backends: list[Any], encode: Callable[[str], list[int]], rounds: int) -> Iterator[str]:
    yield "| grammar | library | compile ms | mask µs p50 | p99 | most |"
    yield "|---|---|---|---|---|---|"
    for name, (kind, value, text) in CASES.items():
        for backend in backends:
            runs = [measured(backend, kind, value, encode(text)) for _ in range(rounds)]
            compile_ms = statistics.median(run[0] for run in runs)
            masks = np.concatenate([run[1] for run in runs])
            p50, p99, most = np.quantile(masks, [0.5, 0.99, 1.0])
            yield (
                f"| {name} | {backend.name} | {compile_ms:.1f} | {p50:.0f} | {p99:.0f} | "
                f"{most:.0f} |"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--model")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--xgrammar-path", help="a folder that xgrammar is installed in")
    asked = parser.parse_args()
    if asked.xgrammar_path:
        sys.path.append(asked.xgrammar_path)

    from lmserve.text.tokenizer import Tokenizer
    from lmserve.weights.checkpoint import open_checkpoint
    from lmserve.weights.files import cache_dir, resolve

    cache = cache_dir(os.environ.get("LMSERVE_CACHE_DIR"))
    checkpoint = open_checkpoint(Path(resolve(asked.model, cache).path), cache)
    assets = checkpoint.tokenizer_assets()
    tokenizer = Tokenizer.from_file(assets.tokenizer_file)
    of = (str(assets.tokenizer_file), tokenizer.vocab_size, tuple(assets.eos_token_ids))
    backends: list[Any] = []
    for kind in (Llguidance, Xgrammar):
        begun = time.perf_counter()
        try:
            backends.append(kind(*of))
        except ImportError as error:
            print(f"{kind.name} is not measured: {error}", file=sys.stderr)
            continue
        print(f"{kind.name}: ready in {time.perf_counter() - begun:.2f} s")
    for row in rows(backends, lambda text: tokenizer.encode(text, add_special=False), asked.rounds):
        print(row)


if __name__ == "__main__":
    main()
