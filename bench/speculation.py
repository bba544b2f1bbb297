#!/usr/bin/env python3
"""What speculation (n-gram prompt lookup) is worth, in the engine alone: tokens a second with and
without, for prompts that ask for their own text back and for ordinary ones.

    .venv/bin/python bench/speculation.py --rounds 7 --json speculation.jsonl

Each round runs every way once, in an order of its own, on a cache that was cleared; ratios are
taken within a round, of wall time and, for machines that others use too, of processor time.
Decoding is timed from the moment every request has its first token until all have their last.
`always` proposes as much as it may whatever that costs: what the measure of costs is worth.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from typing import Any

from tokenizers import Tokenizer

from lmserve.engine.core import EngineCore
from lmserve.engine.speculation.speculation import Speculation
from lmserve.messages import Submit, pack_ids, unpack_ids
from lmserve.sampling import SamplingParams
from lmserve.settings import EngineSettings
from lmserve.weights import files

TEXTS = (
    """The harbour of the old town lies below the hill. Every morning the boats leave before the sun
is up, and every evening they come back with the tide. The fishermen sell what they caught on the
quay, where the cats wait between the crates. In winter the wind comes from the north.""",
    """def total(items):
    result = 0
    for item in items:
        if item.price is None:
            continue
        result += item.price * item.count
    return result


def average(items):
    return total(items) / len(items) if items else 0
""",
    """Name, town, year
Anna, Bremen, 1981
Boris, Lyon, 1979
Clara, Porto, 1990
Daniel, Graz, 1985
Eva, Turin, 1972
Felix, Ghent, 1999
Greta, Lund, 1968
""",
    """To mend a net, hold the torn place open and cut the loose ends. Begin at a corner where three
strands meet. Tie the new twine there with a sheet bend, follow the pattern of the meshes, and keep
each knot as tight as its neighbours. End at another corner of three strands.""",
)
QUOTING = [f"Repeat this text exactly:\n\n{text}" for text in TEXTS] + [
    f"Correct the spelling, and give all of it back:\n\n{text}" for text in TEXTS
]
ORDINARY = [
    "What is the capital of France, and what is it known for?",
    "Write a short story about a fox and a bear.",
    "How do I bake bread at home?",
    "Explain how a computer's memory works.",
    "Give me five tips for learning a language.",
    "What are the pros and cons of remote work?",
    "Write a poem about the sea.",
    "Who was Marie Curie?",
]
KINDS = {"quoting": QUOTING, "ordinary": ORDINARY}
WAYS = ("off", "ngram", "always")


class NoCosts:
    """As if more tokens in a step cost nothing."""

    def add(self, num_rows: int, num_tokens: int, seconds: float) -> None:
        pass

    def share(self, num_rows: int) -> float:
        return 0.0


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    ap.add_argument("--rounds", type=int, default=7)
    ap.add_argument("--rows", type=int, nargs="+", default=[1, 4, 8])
    ap.add_argument("--max-tokens", type=int, default=96)
    ap.add_argument("--temperature", type=float, default=0.0)
    ap.add_argument("--speculation-tokens", type=int, default=8)
    ap.add_argument("--model", default=None)
    ap.add_argument("--device", default="auto")
    ap.add_argument("--kernels", default="auto")
    ap.add_argument("--deterministic", action="store_true")
    ap.add_argument("--json", default="", help="append every figure here, one line each")
    args = ap.parse_args()
    report(measure(args))


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    core = EngineCore(
        EngineSettings(
            model=str(files.resolve(args.model, files.cache_dir(None)).path),
            device=args.device,
            kernels=args.kernels,
            deterministic=args.deterministic,
            session_len=1024,
        )
    )
    info = core.load(lambda stage: None)
    assert core._runner is not None and core._runner.assets is not None
    tokenizer = Tokenizer.from_file(str(core._runner.assets.tokenizer_file))
    print(f"{info.architecture}, {info.weights}, on {info.device}")
    most = args.speculation_tokens
    # kept over the rounds, as a server keeps it
    speculations = {
        "off": None,
        "ngram": Speculation(most),
        "always": Speculation(most, costs=NoCosts()),
    }
    found: list[dict[str, Any]] = []
    for num_round in range(-1, args.rounds):  # the first is to warm up
        for num_rows in args.rows:
            for kind, texts in KINDS.items():
                answers: dict[str, list[list[int]]] = {}
                for way in random.sample(WAYS, len(WAYS)):
                    core.scheduler.speculation = speculations[way]
                    core.cache.clear()
                    # other texts each round where not all fit
                    chosen = [texts[(num_round + at) % len(texts)] for at in range(num_rows)]
                    prompts = [tokenizer.encode(chat(text)).ids for text in chosen]
                    figures = run(core, prompts, args)
                    answers[way] = figures.pop("answers")
                    figures |= {"round": num_round, "rows": num_rows, "kind": kind, "way": way}
                    figures["same"] = answers[way] == answers[next(iter(answers))]
                    if num_round >= 0:
                        found.append(figures)
                        if args.json:
                            with open(args.json, "a") as file:
                                file.write(json.dumps(figures) + "\n")
    return found


def chat(text: str) -> str:
    """As SmolLM2's template writes it; others read it as text."""
    return f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"


def run(core: EngineCore, prompts: list[list[int]], args: argparse.Namespace) -> dict[str, Any]:
    before = core.stats.snapshot()
    core.handle(
        [
            Submit(
                at,
                pack_ids(ids),
                SamplingParams(args.temperature, max_tokens=args.max_tokens, seed=at),
            )
            for at, ids in enumerate(prompts)
        ]
    )
    answers: list[list[int]] = [[] for _ in prompts]
    began_s = began_cpu_s = 0.0
    num_first = 0
    while core.has_work():
        for output in core.step().outputs:
            answers[output.rid] += unpack_ids(output.token_ids)
        if not num_first and all(answers):
            num_first = sum(map(len, answers))
            began_s, began_cpu_s = time.perf_counter(), time.process_time()
    seconds, cpu_s = time.perf_counter() - began_s, time.process_time() - began_cpu_s
    num_tokens = sum(map(len, answers)) - num_first
    after = core.stats.snapshot()
    return {
        "answers": answers,
        "tokens_s": num_tokens / seconds,
        "tokens_cpu_s": num_tokens / cpu_s,
        "steps": after.steps - before.steps,
        "tokens": num_tokens,
        "proposed": after.spec_proposed_tokens - before.spec_proposed_tokens,
        "accepted": after.spec_accepted_tokens - before.spec_accepted_tokens,
    }


def report(found: list[dict[str, Any]]) -> None:
    groups = sorted({(each["kind"], each["rows"]) for each in found}, reverse=True)
    print(f"{'':10}{'rows':>5}  {'way':8}{'tok/s':>8}  {'times off':>18}"
          f"  {'of processor time':>18}  accepted of proposed")  # fmt: skip
    for kind, num_rows in groups:
        of: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
        for each in found:
            if (each["kind"], each["rows"]) == (kind, num_rows):
                of[each["way"]].append(each)
        for way, runs in of.items():
            tokens_s = statistics.median(each["tokens_s"] for each in runs)
            print(
                f"{kind:10}{num_rows:5}  {way:8}{tokens_s:8.1f}"
                f"  {times(runs, of['off'], 'tokens_s'):>18}"
                f"  {times(runs, of['off'], 'tokens_cpu_s'):>18}"
                f"  {sum(each['accepted'] for each in runs)} of"
                f" {sum(each['proposed'] for each in runs)}"
            )
    differ = sum(not each["same"] for each in found)
    print(f"{differ} of {len(found)} runs answered other tokens than the round's first")


def times(runs: list[dict[str, Any]], bases: list[dict[str, Any]], name: str) -> str:
    ratios = sorted(one[name] / base[name] for one, base in zip(runs, bases, strict=True))
    return f"{statistics.median(ratios):.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f})"


if __name__ == "__main__":
    main()
