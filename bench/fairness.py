#!/usr/bin/env python3
"""One user with an API key of his own, alone and beside fifty users of another key: how long do
his first tokens take?

    .venv/bin/python bench/fairness.py --rounds 3 --json fairness.json

Starts two servers of its own with the default model, with `--fair` and with `--no-fair`, and asks
them in turns; while one is asked, the other does nothing. In each round the user asks `--asks`
times alone; then the fifty begin, each asking again as soon as answered, and once they have had
fifty answers he asks as often again. No two prompts are alike. Prints the median time to the
first token alone and beside, and the ratio of the two; ends with 1 where the fair server's median
ratio is above `--most`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field

import aiohttp
from serving import serving

from lmserve.bench.client import Answer, Client, Manner, Prompt
from lmserve.bench.figures import median, percentile
from lmserve.bench.load import Limits, http
from lmserve.bench.machine import LoadMeter
from lmserve.bench.prompts import measure, prompts
from lmserve.bench.report import document, write_json
from lmserve.bench.table import table
from lmserve.bench.workload import Workload

ONE, MANY = "one-user", "fifty-users"  # the keys
SERVERS = {"fair": "--fair", "first come": "--no-fair"}
LIMITS = Limits(timeout_s=300.0)


@dataclass(slots=True)
class Side:
    """One server, and what was measured of it."""

    name: str
    one: Client
    many: Client
    asks: dict[str, Iterator[Prompt]] = field(default_factory=dict)  # by key
    rounds: list[dict[str, float]] = field(default_factory=list)


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    ap.add_argument("--users", type=int, default=50, help="of the other key")
    ap.add_argument("--rounds", type=int, default=3)
    ap.add_argument("--asks", type=int, default=10, help="of the one user, alone and beside")
    ap.add_argument("--prompt-tokens", type=int, default=256, help="of the one user")
    ap.add_argument("--max-tokens", type=int, default=32, help="of his answers")
    ap.add_argument("--others-prompt-tokens", type=int, default=256)
    ap.add_argument("--others-max-tokens", type=int, default=64)
    ap.add_argument("--pause-s", type=float, default=0.2, help="between two questions of his")
    ap.add_argument("--only", choices=[*SERVERS], help="one of the two servers")
    ap.add_argument("--most", type=float, default=2.0, help="ratio that is still fair")
    ap.add_argument("--flags", default="", help="more flags of the servers")
    ap.add_argument("--json", default="", help="write every figure here")
    args = ap.parse_args()
    sides = asyncio.run(measured(args))
    print(shown(sides))
    if args.json:
        results = {side.name: {"rounds": side.rounds, "median": of_all(side)} for side in sides}
        write_json(args.json, document("fairness", vars(args), results))
    fair = [side for side in sides if side.name == "fair"]
    sys.exit(any(of_all(side)["ratio"] > args.most for side in fair))


async def measured(args: argparse.Namespace) -> list[Side]:
    async with contextlib.AsyncExitStack() as stack:
        sides = [
            await stack.enter_async_context(side(name, args))
            for name in SERVERS
            if args.only in (None, name)
        ]
        for number in range(args.rounds):
            for each in sides:
                each.rounds.append(await one_round(each, args))
                told = {name: round(value, 3) for name, value in each.rounds[-1].items()}
                print(f"round {number + 1}, {each.name}: {told}", file=sys.stderr)
        return sides


@contextlib.asynccontextmanager
async def side(name: str, args: argparse.Namespace) -> AsyncIterator[Side]:
    flags = (SERVERS[name], "--model-name", "m", "--api-keys", f"{ONE},{MANY}")
    async with (
        serving(*flags, extra=args.flags) as server,
        http(LIMITS, ONE) as ones,
        http(LIMITS, MANY) as manys,
    ):

        def client(session: aiohttp.ClientSession) -> Client:
            return Client(session, server.url, Manner("m"))

        made = Side(name, client(ones), client(manys))
        for key, num_tokens in ((ONE, args.prompt_tokens), (MANY, args.others_prompt_tokens)):
            work = Workload(key, prompt_tokens=num_tokens)
            sizes = await measure(made.one, work, key)
            made.asks[key] = prompts(work, sizes, f"{key}/{name}")
        await ask(made, args, 2)  # to warm up
        yield made


async def one_round(side: Side, args: argparse.Namespace) -> dict[str, float]:
    meter = LoadMeter()
    alone = await ask(side, args, args.asks)
    load = meter.read()
    async with others(side, args) as answers:
        beside = await ask(side, args, args.asks)
    ttfts = {"alone": times(alone), "beside": times(beside)}
    return {
        "alone_s": median(ttfts["alone"]),
        "beside_s": median(ttfts["beside"]),
        "beside_p90_s": percentile(ttfts["beside"], 90),
        "ratio": median(ttfts["beside"]) / median(ttfts["alone"]),
        "tpot_alone_s": median([answer.tpot_s for answer in alone]),
        "tpot_beside_s": median([answer.tpot_s for answer in beside]),
        "others_ttft_s": median(times(answers)),
        "others_gap_p99_s": percentile([gap for each in answers for gap in each.gaps], 99),
        "others_tokens_per_s": sum(each.output_tokens for each in answers)
        / max(each.ended - answers[0].began for each in answers),
        "foreign_cores": load.foreign_cores,
    }


async def ask(side: Side, args: argparse.Namespace, num: int) -> list[Answer]:
    answers = []
    for _ in range(num):
        answers.append(await side.one.ask(next(side.asks[ONE]), args.max_tokens))
        await asyncio.sleep(args.pause_s)
    return answers


@contextlib.asynccontextmanager
async def others(side: Side, args: argparse.Namespace) -> AsyncIterator[list[Answer]]:
    """The users of the other key, once they have had as many answers as they are. Gives their
    answers from then on, whole at its end."""
    answers: list[Answer] = []
    begun, over = asyncio.Event(), asyncio.Event()

    async def user(number: int) -> None:
        # the first answers differ in length, so that not all end in one step
        num_tokens = 1 + args.others_max_tokens * number // args.users
        while not over.is_set():
            answers.append(await side.many.ask(next(side.asks[MANY]), num_tokens))
            num_tokens = args.others_max_tokens
            if len(answers) == args.users:
                begun.set()

    async with asyncio.TaskGroup() as group:
        for number in range(args.users):
            group.create_task(user(number))
        await begun.wait()
        answers.clear()
        try:
            yield answers
        finally:
            over.set()


def times(answers: list[Answer]) -> list[float]:
    for answer in answers:
        if answer.error:
            raise SystemExit(f"a request failed: {answer.error}")
    return [answer.ttft_s for answer in answers]


# --- what is told ---------------------------------------------------------------------------


def of_all(side: Side) -> dict[str, float]:
    columns = defaultdict(list)
    for each in side.rounds:
        for name, value in each.items():
            columns[name].append(value)
    return {name: median(values) for name, values in columns.items()}


def shown(sides: list[Side]) -> str:
    headers = ["medians", "alone ms", "beside ms", "ratio", "least", "most",
               "beside p90 ms", "others' TTFT ms", "their tokens/s", "their p99 gap"]  # fmt: skip
    rows = []
    for each in sides:
        of, ratios = of_all(each), [one["ratio"] for one in each.rounds]
        rows.append(
            [each.name, of["alone_s"] * 1e3, of["beside_s"] * 1e3, of["ratio"], min(ratios),
             max(ratios), of["beside_p90_s"] * 1e3, of["others_ttft_s"] * 1e3,
             of["others_tokens_per_s"], of["others_gap_p99_s"] * 1e3]
        )  # fmt: skip
    return table(headers, rows)


if __name__ == "__main__":
    main()
