#!/usr/bin/env python3
"""What features cost beside plain sampling, in the engine alone (a child process, the default
model): structured output and log probabilities at batch 32, the first compile of a large schema,
and n = 8 of a prompt beside n = 1.

    .venv/bin/python bench/features.py --rounds 7 --json features.jsonl

Each round measures every way once, in an order of its own, and ratios are taken within a round.
Decoding is timed from the moment every request has its first token until one has its last, so
that all are in the batch. Prints each way's median and its spread.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import time
from functools import partial
from typing import Any

import msgspec

from lmserve.bridge.child import ChildEngine
from lmserve.bridge.mailbox import Mailbox
from lmserve.grammars import DeepThreads, load_tokenizer, new_matcher
from lmserve.messages import EngineInfo
from lmserve.sampling import Grammar, SamplingParams
from lmserve.settings import EngineSettings
from lmserve.text.structures.compiler import Compiler
from lmserve.types import Structure
from lmserve.weights import files

STRING: dict[str, Any] = {"type": "string"}
PERSON = {
    "type": "object",
    "properties": {
        "name": STRING,
        "tags": {"type": "array", "items": STRING, "minItems": 3},
        "size": {"type": "integer"},
        "known": {"type": "boolean"},
    },
    "required": ["name", "tags", "size", "known"],
    "additionalProperties": False,
}
PEOPLE = {"type": "array", "items": PERSON, "minItems": 100}  # no answer comes to its end
KINDS: list[dict[str, Any]] = [
    STRING,
    {"type": "integer"},
    {"type": "number", "minimum": 0},
    {"type": "boolean"},
    {"type": "array", "items": STRING},
    {"enum": ["one", "two", "three"]},
    {"type": "string", "maxLength": 40},
    {"type": "object", "properties": {"a": STRING, "b": {"type": "integer"}}, "required": ["a"]},
]
PLAIN, STRUCTURED, LOGPROBS = "plain", "structured", "logprobs=5"


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    ap.add_argument("--rounds", type=int, default=7)
    ap.add_argument("--batch", type=int, default=32)
    ap.add_argument("--prompt-tokens", type=int, default=32, help="of each of the batch")
    ap.add_argument("--max-tokens", type=int, default=96, help="of each answer of the batch")
    ap.add_argument("--temperature", type=float, default=1.0)
    ap.add_argument("--properties", type=int, default=100, help="of the schema compiled")
    ap.add_argument("--n", type=int, default=8)
    ap.add_argument("--shared-tokens", type=int, default=1000, help="the prompt of n")
    ap.add_argument("--model", default=None)
    ap.add_argument("--device", default="auto")
    ap.add_argument("--json", default="", help="append every figure here, one line a round")
    args = ap.parse_args()
    report(asyncio.run(measure(args)), args)


async def measure(args: argparse.Namespace) -> list[dict[str, float]]:
    settings = EngineSettings(
        model=str(files.resolve(args.model, files.cache_dir(None)).path),
        device=args.device,
        max_batch_size=max(args.batch, args.n),
        session_len=args.shared_tokens + args.prompt_tokens + args.max_tokens,
    )
    handle = ChildEngine(settings)
    await handle.start()
    deep = DeepThreads(1, "compile")
    try:
        bench = Bench(handle, await handle.wait_ready(), deep, args)
        await bench.warm_up()
        rounds = []
        for number in range(args.rounds):
            rounds.append(await bench.round(number))
            keep(rounds[-1], args.json)
        return rounds
    finally:
        deep.close()
        await handle.close()


def keep(one: dict[str, float], path: str) -> None:
    if path:
        with open(path, "a") as file:
            file.write(json.dumps(one) + "\n")


class Bench:
    def __init__(
        self, handle: ChildEngine, info: EngineInfo, deep: DeepThreads, args: argparse.Namespace
    ):
        self._handle = handle
        self._args = args
        self._vocab_size = info.vocab_size
        self._deep = deep
        self._tokenizer = (info.tokenizer_file, info.vocab_size, info.eos_token_ids)
        self._compiler = Compiler(*self._tokenizer)
        self._source = random.Random(0)
        self._ways: dict[str, SamplingParams] = {}

    async def warm_up(self) -> None:
        """The first of each kind pays for what no later one does: the tokenizer's tables, too."""
        plain = SamplingParams(
            temperature=self._args.temperature, max_tokens=self._args.max_tokens, ignore_eos=True
        )
        grammar, _ = await self._compile(PEOPLE)
        self._ways = {
            PLAIN: plain,
            STRUCTURED: msgspec.structs.replace(plain, grammar=Grammar(grammar)),
            LOGPROBS: msgspec.structs.replace(plain, logprobs=5),
        }
        for sampling in self._ways.values():
            await self._decode(msgspec.structs.replace(sampling, max_tokens=8))
        await self._share(2)

    async def round(self, number: int) -> dict[str, float]:
        """Every figure once."""
        ways = list(self._ways)
        ways = ways[number % len(ways) :] + ways[: number % len(ways)]
        rates = {way: await self._decode(self._ways[way]) for way in ways}
        figures = {f"{way} tok/s": rates[way] for way in self._ways}
        figures["compile ms"] = (await self._compile(self._schema(number)))[1] * 1000
        for n in (1, self._args.n)[:: 1 if number % 2 else -1]:
            shared = await self._share(n)
            figures |= {f"n={n} {name}": value for name, value in shared.items()}
        return figures

    def _prompt(self, num_tokens: int) -> list[int]:
        return [self._source.randrange(self._vocab_size) for _ in range(num_tokens)]

    def _submit(self, prompts: list[list[int]], sampling: SamplingParams) -> list[Counter]:
        """All in one frame, each with a seed of its own."""
        seeded = (msgspec.structs.replace(sampling, seed=at) for at in range(len(prompts)))
        return [Counter(self._handle.submit(*each)) for each in zip(prompts, seeded, strict=True)]

    # --- the three measures ---------------------------------------------------------------

    async def _decode(self, sampling: SamplingParams) -> float:
        """Tokens a second of the whole batch."""
        await self._handle.control("clear_cache")
        prompts = [self._prompt(self._args.prompt_tokens) for _ in range(self._args.batch)]
        counters = self._submit(prompts, sampling)
        await asyncio.gather(*(counter.read() for counter in counters))
        for counter in counters:
            counter.check(sampling.max_tokens)
        if sampling.grammar is not None:
            await self._check_structured(sampling.grammar, counters)
        began = max(counter.times_s[0] for counter in counters)
        ended = min(counter.times_s[-1] for counter in counters)
        num_tokens = sum(began < at <= ended for counter in counters for at in counter.times_s)
        return num_tokens / (ended - began)

    async def _check_structured(self, grammar: Grammar, counters: list[Counter]) -> None:
        def work() -> list[int]:
            tokenizer = load_tokenizer(*self._tokenizer)
            new = partial(new_matcher, tokenizer, grammar.source)
            return [new().validate_tokens(counter.token_ids) for counter in counters]

        num_valid = await asyncio.wrap_future(self._deep.submit(work))
        if num_valid != [len(counter.token_ids) for counter in counters]:
            raise SystemExit(f"tokens that obey the grammar: {num_valid}")

    async def _compile(self, schema: dict[str, Any]) -> tuple[str, float]:
        """The grammar's source, and the seconds that its first compile took."""

        def work() -> tuple[str, float]:
            began = time.perf_counter()
            source = self._compiler.compile(Structure("json_schema", schema))
            return source, time.perf_counter() - began

        return await asyncio.wrap_future(self._deep.submit(work))

    def _schema(self, number: int) -> dict[str, Any]:
        names = [f"field_{number}_{at}" for at in range(self._args.properties)]
        return {
            "type": "object",
            "properties": {name: KINDS[at % len(KINDS)] for at, name in enumerate(names)},
            "required": names[::2],
            "additionalProperties": False,
        }

    async def _share(self, n: int) -> dict[str, float]:
        """One new prompt n times at once: what it took until each had its first token."""
        await self._handle.control("clear_cache")
        before = await self._handle.control("stats")
        prompt = self._prompt(self._args.shared_tokens)
        began = time.perf_counter()
        counters = self._submit([prompt] * n, SamplingParams(max_tokens=4, ignore_eos=True))
        held: list[int] = []
        self._handle.on_step = lambda stats: held.append(stats.blocks_held)
        await asyncio.gather(*(counter.read() for counter in counters))
        self._handle.on_step = None
        after = await self._handle.control("stats")
        hits, queries = (after[name] - before[name] for name in ("prefix_hits", "prefix_queries"))
        return {
            "blocks": max(held),
            "prompt tokens run": queries - hits,
            "first tokens ms": 1000 * (max(c.times_s[0] for c in counters) - began),
        }


class Counter:
    """What came of one request, and when."""

    def __init__(self, mailbox: Mailbox):
        self._mailbox = mailbox
        self.token_ids: list[int] = []
        self.times_s: list[float] = []

    async def read(self) -> None:
        while True:
            delivery = await self._mailbox.get()
            self.token_ids += delivery.token_ids
            self.times_s += [time.perf_counter()] * len(delivery.token_ids)
            if delivery.finish is not None:
                self._finish, self._error = delivery.finish, delivery.error
                return

    def check(self, num_tokens: int) -> None:
        """All ways choose the same number of tokens."""
        if self._finish != "length" or len(self.times_s) != num_tokens:
            raise SystemExit(f"{len(self.times_s)} tokens, {self._finish}: {self._error}")


def report(rounds: list[dict[str, float]], args: argparse.Namespace) -> None:
    def spread(values: list[float], digits: int) -> str:
        low, middle, high = min(values), statistics.median(values), max(values)
        return f"{middle:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"

    def ratio(name: str, to: str) -> str:
        return spread([one[name] / one[to] for one in rounds], 3)

    ratios = {f"{way} tok/s": f"{PLAIN} tok/s" for way in (STRUCTURED, LOGPROBS)}
    for name in ("blocks", "prompt tokens run", "first tokens ms"):
        ratios[f"n={args.n} {name}"] = f"n=1 {name}"
    print("| figure | median (least-greatest) | to plain, or n=1 |")
    print("|---|---|---|")
    for name in rounds[0]:
        values = [one[name] for one in rounds]
        to = ratio(name, ratios[name]) if name in ratios else ""
        print(f"| {name} | {spread(values, 1)} | {to} |")
    print(
        f"{len(rounds)} rounds, {os.cpu_count()} cores, batch {args.batch}, "
        f"{args.max_tokens} tokens each; n over {args.shared_tokens} tokens"
    )


if __name__ == "__main__":
    main()
