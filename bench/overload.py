#!/usr/bin/env python3
"""Goodput where more is asked than the server can do: requests a second that begin within 2 s and
never pause for more than 200 ms, as the offered load grows to three times the capacity.

    .venv/bin/python bench/overload.py --json overload.json --plot docs/images/overload.svg
    .venv/bin/python bench/overload.py --max-queue-s 0 1    # without a limit, and with one

Starts servers of its own with the default model. On the first, users who each wait for their
answer, more and more of them, show the capacity: the greatest goodput of those steps, and how many
may run together before steps take longer than the objective allows. The next, with that many as
--max-batch-size and with --max-queue-s, is asked for more than it can do: requests begin at random
times (Poisson) at 0.5, 1, 2 and 3 times the capacity, whether or not others have ended. Those of
the first `--warm-s` do not count. A request that is refused is not tried again. Ends with 1 where,
with the last `--max-queue-s`, goodput at the greatest load is under 90 % of its peak.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import aiohttp
from serving import Serving, metrics, serving

from lmserve.bench.client import Answer, Client, Manner
from lmserve.bench.figures import percentiles
from lmserve.bench.load import Limits, Run, http, prepare, run
from lmserve.bench.machine import LoadMeter, describe
from lmserve.bench.summary import LEVELS
from lmserve.bench.workload import Workload

WANTED = 0.9  # of the peak


async def sweep(args: argparse.Namespace, client: Client) -> list[dict]:
    steps = []
    for users in args.users:
        work = replace(args.work, users=users, num_requests=100_000)
        steps.append({"users": users} | await stretch(args, client, work, f"sweep/{users}"))
        show(f"{users} users", steps[-1])
    return steps


async def offer(args: argparse.Namespace, client: Client, capacity: float) -> list[dict]:
    steps = []
    for factor in args.factors:
        rate = factor * capacity
        num = int(1.5 * rate * (args.warm_s + args.seconds)) + 20
        work = replace(args.work, rate=rate, num_requests=num)
        step = await stretch(args, client, work, f"offer/{factor}")
        steps.append({"factor": factor, "offered_req_s": rate} | step)
        show(f"{factor:g} x, {rate:.2f} requests/s", steps[-1])
    return steps


async def stretch(args: argparse.Namespace, client: Client, work: Workload, seed: str) -> dict:
    """What became of the requests that came after the warm-up."""
    limits = Limits(duration_s=args.warm_s + args.seconds, timeout_s=300)
    # enough of them for the fastest server; a prompt costs nothing until it is asked
    asked = await prepare(client, replace(work, num_requests=min(work.num_requests, 5000)),
                          limits, f"{args.seed}/{seed}")  # fmt: skip
    meter, began = LoadMeter(), time.perf_counter()
    done: Run = await run(client, work, asked, limits, f"{args.seed}/{seed}")
    counted = [a for a in done.answers if args.warm_s <= a.began - began <= limits.duration_s]
    return figures(args, counted) | {"load": meter.read().as_dict()}


def figures(args: argparse.Namespace, answers: Sequence[Answer]) -> dict:
    good = [answer for answer in answers if not answer.error]
    met = [answer for answer in good if all(LEVELS[n](answer) <= ms for n, ms in args.slo.items())]
    errors = Counter(answer.error.partition(":")[0] for answer in answers if answer.error)
    return {
        "asked": len(answers),
        "answered": len(good),
        "met": len(met),
        "refused": errors.pop("HTTP 429", 0),
        "errors": dict(errors),
        "goodput_req_s": len(met) / args.seconds,
        "answered_req_s": len(good) / args.seconds,
        "late": sum(LEVELS["ttft"](answer) > args.slo["ttft"] for answer in good),
        "paused": sum(LEVELS["itl"](answer) > args.slo["itl"] for answer in good),
        "ttft_ms": percentiles([answer.ttft_s for answer in good], scale=1e3),
        "longest_gap_ms": percentiles([LEVELS["itl"](answer) for answer in good]),
    }


def show(what: str, step: dict) -> None:
    ttft, gap = step["ttft_ms"], step["longest_gap_ms"]
    print(
        f"  {what:24} goodput {step['goodput_req_s']:6.2f}/s, "
        f"answered {step['answered_req_s']:6.2f}/s, refused {step['refused']:4}, "
        f"late {step['late']:4}, paused {step['paused']:4}; "
        f"TTFT p50 {ttft['p50']:6.0f} p99 {ttft['p99']:6.0f} ms; "
        f"longest gap p50 {gap['p50']:4.0f} p99 {gap['p99']:4.0f} ms"
        + (f"; ERRORS {step['errors']}" if step["errors"] else ""),
        flush=True,
    )


async def find(args: argparse.Namespace) -> dict:
    """The step of the sweep with the greatest goodput, and all of them."""
    print("capacity", flush=True)
    async with serving(extra=args.server_flags) as server, http(Limits()) as session:
        client = Client(session, server.url, Manner(model=await _model(session, server.url)))
        steps = await sweep(args, client)
    best = max(steps, key=lambda step: step["goodput_req_s"])
    if not best["met"]:
        raise SystemExit("no request met the objective: this machine is too slow or too busy")
    return {"sweep": steps, "capacity_req_s": best["goodput_req_s"], "users": best["users"]}


async def measure(args: argparse.Namespace, max_queue_s: float, found: dict) -> dict:
    flags = [f"--max-queue-s={max_queue_s:g}"] if max_queue_s else []
    if args.fit_batch and found["users"]:
        flags.append(f"--max-batch-size={found['users']}")
    print(" ".join(flags) or "as it is by default", flush=True)
    server: Serving
    async with serving(*flags, extra=args.server_flags) as server, http(Limits()) as session:
        client = Client(session, server.url, Manner(model=await _model(session, server.url)))
        offered = await offer(args, client, found["capacity_req_s"])
        seen = await metrics(session, server.url)
    peak = max(step["goodput_req_s"] for step in offered)
    last = offered[-1]["goodput_req_s"]
    result = {
        "record": "overload",
        "machine": describe(),
        "flags": flags,
        "server_flags": args.server_flags,
        "max_queue_s": max_queue_s or None,
        "workload": args.work.title,
        "slo_ms": args.slo,
        "seconds": args.seconds,
        **found,
        "offered": offered,
        "refused_for_the_wait": seen.get("vllm:admission_rejections_total/wait"),
        "peak_req_s": peak,
        "kept": last / peak if peak else 0.0,
    }
    print(f"  at {args.factors[-1]:g} x, goodput is {result['kept']:.0%} of its peak", flush=True)
    return result


async def _model(session: aiohttp.ClientSession, url: str) -> str:
    async with session.get(f"{url}/v1/models") as response:
        return str((await response.json())["data"][0]["id"])


async def main_async(args: argparse.Namespace) -> list[dict]:
    results = []
    known = {"sweep": [], "capacity_req_s": args.capacity, "users": args.batch}
    found = known if args.capacity else await find(args)
    for max_queue_s in args.max_queue_s:  # the same load for all
        results.append(await measure(args, max_queue_s, found))
        if args.json:
            await asyncio.to_thread(append, Path(args.json), results[-1])
    return results


def append(path: Path, result: dict) -> None:
    with path.open("a") as file:
        file.write(json.dumps(result) + "\n")


def plot(results: Sequence[dict], path: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for result in results:
        limit = result["max_queue_s"]
        label = f"max_queue_s {limit:g}" if limit else "no limit of the wait"
        offered = [step["offered_req_s"] for step in result["offered"]]
        axes.plot(offered, [step["goodput_req_s"] for step in result["offered"]], "o-", label=label)
    axes.axvline(results[0]["capacity_req_s"], color="grey", ls=":", label="capacity")
    axes.set(
        xlabel="requests offered a second", ylabel="goodput, requests a second", ylim=(0, None)
    )
    axes.legend()
    figure.savefig(path, metadata={"Date": None} if path.endswith(".svg") else None)


def main() -> int:
    ap = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    ap.add_argument("--max-queue-s", type=float, nargs="+", default=[1.0], help="0: no limit")
    ap.add_argument("--users", type=int, nargs="+", default=[2, 4, 8, 16, 24, 32, 48, 64])
    ap.add_argument("--factors", type=float, nargs="+", default=[0.5, 1, 2, 3])
    ap.add_argument("--capacity", type=float, help="requests a second, as an earlier run found it")
    ap.add_argument("--batch", type=int, default=0, help="with it: --max-batch-size of the server")
    ap.add_argument(
        "--fit-batch",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="let as many run together as users had the greatest goodput",
    )
    ap.add_argument("--seconds", type=float, default=60.0, help="of each step")
    ap.add_argument("--warm-s", type=float, default=15.0, help="before each, not counted")
    ap.add_argument("--prompt-tokens", type=int, default=64)
    ap.add_argument("--max-tokens", type=int, default=32)
    ap.add_argument("--ttft-ms", type=float, default=2000.0)
    ap.add_argument("--gap-ms", type=float, default=200.0)
    ap.add_argument("--seed", default="1")
    ap.add_argument("--server-flags", default="", help="more of them, in one word")
    ap.add_argument("--json", help="append each result here, one line")
    ap.add_argument("--plot", help="write goodput over load here (.svg, .png)")
    args = ap.parse_args()
    args.slo = {"ttft": args.ttft_ms, "itl": args.gap_ms}
    args.work = Workload("overload", 1, 0, args.prompt_tokens, 0, args.max_tokens)
    results = asyncio.run(main_async(args))
    if args.plot:
        plot(results, args.plot)
    return 0 if results[-1]["kept"] >= WANTED else 1


if __name__ == "__main__":
    sys.exit(main())
