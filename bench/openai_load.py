#!/usr/bin/env python3
"""Closed-loop load client for an OpenAI-compatible LLM server.

N users each send a streaming request, wait for its end and send the next one, until
`--requests` have been sent. Prints one small table and, with `--json`, writes every figure.

    python openai_load.py --base-url http://127.0.0.1:8000/v1 --model m \
        --users 8 --requests 32 --prompt-tokens 128 --max-tokens 128 --ignore-eos

Prompt lengths are in tokens of the served model: a first probe request asks the server how
many tokens a known text makes (usage.prompt_tokens), and prompts are sized from that.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
import time
from dataclasses import dataclass, field

import aiohttp

WORDS = (
    "time year people way day man thing woman life child world school state family student "
    "group country problem hand part place case week company system program question work "
    "government number night point home water room mother area money story fact month lot "
    "right study book eye job word business issue side kind head house service friend father "
    "power hour game line end member law car city name team minute idea body back parent face "
    "level office door health person art war history party result change morning reason "
    "research girl guy moment air teacher force education"
).split()


@dataclass
class Result:
    ok: bool = False
    error: str = ""
    start: float = 0.0
    first: float = 0.0  # time of the first chunk with text, 0 when none came
    end: float = 0.0
    gaps: list[float] = field(default_factory=list)  # seconds between chunks with text
    chunks: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    by_usage: bool = False


def percentiles(values: list[float], scale: float = 1000.0) -> dict[str, float]:
    ordered = sorted(values) or [0.0]
    at = {"p50": 0.5, "p95": 0.95, "p99": 0.99, "max": 1.0}
    out = {k: ordered[min(len(ordered) - 1, int(q * len(ordered)))] for k, q in at.items()}
    out["mean"] = statistics.fmean(ordered)
    return {k: round(v * scale, 2) for k, v in out.items()} if values else {}


class Client:
    def __init__(self, args: argparse.Namespace, session: aiohttp.ClientSession):
        self.args, self.session = args, session
        self.url = args.base_url.rstrip("/") + (
            "/chat/completions" if args.endpoint == "chat" else "/completions"
        )
        self.headers = {"Authorization": f"Bearer {args.api_key}"} if args.api_key else {}
        self.tokens_per_word = 1.0
        self.overhead = 0  # template tokens the server adds to every prompt

    def body(self, prefix: str, text: str, max_tokens: int) -> dict:
        a = self.args
        body: dict = {
            "model": a.model,
            "max_tokens": max_tokens,
            "temperature": a.temperature,
            "stream": True,
        }
        if not a.no_usage:
            body["stream_options"] = {"include_usage": True}
        if a.ignore_eos:
            body["ignore_eos"] = True
        if a.extra:
            body.update(json.loads(a.extra))
        if a.endpoint == "chat":
            system = [{"role": "system", "content": prefix}] if prefix else []
            body["messages"] = system + [{"role": "user", "content": text}]
        else:
            body["prompt"] = f"{prefix} {text}" if prefix else text
        return body

    async def request(self, prefix: str, text: str, max_tokens: int) -> Result:
        r = Result(start=time.perf_counter())
        last = 0.0
        try:
            async with self.session.post(
                self.url, json=self.body(prefix, text, max_tokens), headers=self.headers
            ) as resp:
                if resp.status != 200:
                    r.error = f"HTTP {resp.status}: {(await resp.text())[:200]}"
                    return r
                async for raw in resp.content:
                    now = time.perf_counter()
                    line = raw.strip()
                    if not line.startswith(b"data:"):
                        continue
                    data = line[5:].strip()
                    if data == b"[DONE]":
                        break
                    event = json.loads(data)
                    if event.get("error"):
                        r.error = f"stream error: {str(event['error'])[:200]}"
                        return r
                    usage = event.get("usage")
                    if usage and usage.get("completion_tokens") is not None:
                        r.prompt_tokens = usage.get("prompt_tokens") or 0
                        r.output_tokens = usage["completion_tokens"]
                        details = usage.get("prompt_tokens_details") or {}
                        r.cached_tokens = details.get("cached_tokens") or 0
                        r.by_usage = True
                    for choice in event.get("choices") or []:
                        delta = choice.get("delta") or {}
                        if choice.get("text") or any(
                            delta.get(k) for k in ("content", "reasoning_content", "reasoning")
                        ):
                            r.chunks += 1
                            if last:
                                r.gaps.append(now - last)
                            else:
                                r.first = now
                            last = now
            if not r.by_usage:
                r.output_tokens = r.chunks
            r.ok = r.chunks > 0 or r.output_tokens > 0
            if not r.ok:
                r.error = "empty stream"
        except TimeoutError:
            r.error = "timeout"
        except (aiohttp.ClientError, OSError, ValueError) as e:
            r.error = f"{type(e).__name__}: {e}"[:200]
        finally:
            r.end = time.perf_counter()
        return r

    async def calibrate(self, rng: random.Random) -> None:
        """Learns tokens per word and template overhead from the server's own count."""
        short, long = 20, 220
        counts = []
        for n in (short, long):
            r = await self.request("", words(rng, n), 1)
            if not r.ok or not r.prompt_tokens:
                print(f"no token count from the server: {r.error}", file=sys.stderr)
                return
            counts.append(r.prompt_tokens)
        self.tokens_per_word = max(0.2, (counts[1] - counts[0]) / (long - short))
        self.overhead = max(0, round(counts[0] - short * self.tokens_per_word))

    def words_for(self, tokens: int) -> int:
        return max(1, round(tokens / self.tokens_per_word))


def words(rng: random.Random, n: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(n))


async def run(args: argparse.Namespace) -> dict:
    rng = random.Random(args.seed)
    timeout = aiohttp.ClientTimeout(total=args.request_timeout, sock_connect=30)
    # a new connection per request unless asked: some servers close kept-alive ones unannounced
    connector = aiohttp.TCPConnector(limit=0, force_close=not args.keepalive)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
        client = Client(args, session)
        await client.calibrate(rng)
        # the prefix depends on the seed alone, so that a later run shares it too
        prefix = ""
        if args.shared_prefix_tokens:
            prefix = words(
                random.Random(args.seed * 7919 + 1), client.words_for(args.shared_prefix_tokens)
            )
        tail = max(1, args.prompt_tokens - client.overhead)
        prompts = [words(rng, client.words_for(tail)) for _ in range(args.requests)]
        for _ in range(args.warmup):
            await client.request(prefix, words(rng, client.words_for(tail)), args.max_tokens)

        queue = iter(prompts)
        results: list[Result] = []
        begin = time.perf_counter()

        async def user(i: int) -> None:
            await asyncio.sleep(args.ramp * i / max(1, args.users))
            for prompt in queue:
                if time.perf_counter() - begin > args.duration:
                    return
                results.append(await client.request(prefix, prompt, args.max_tokens))

        tasks = [asyncio.create_task(user(i)) for i in range(args.users)]
        _, late = await asyncio.wait(tasks, timeout=args.hard_limit)
        for t in late:  # the hard limit: what is still running counts as an error
            t.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        wall = time.perf_counter() - begin
        return summary(args, client, results, wall, cut=len(late))


def summary(args, client: Client, results: list[Result], wall: float, cut: int) -> dict:
    good = [r for r in results if r.ok]
    errors: dict[str, int] = {}
    for r in results:
        if not r.ok:
            errors[r.error] = errors.get(r.error, 0) + 1
    if cut:
        errors["cut off by --hard-limit"] = cut
    out = sum(r.output_tokens for r in good)
    prompt = sum(r.prompt_tokens for r in good)
    # per request: mean time per output token after the first (comparable where a server
    # sends several tokens in one chunk)
    tpot = [
        (r.end - r.first) / (r.output_tokens - 1) for r in good if r.first and r.output_tokens > 1
    ]
    return {
        "label": args.label,
        "model": args.model,
        "endpoint": args.endpoint,
        "users": args.users,
        "max_tokens": args.max_tokens,
        "prompt_tokens_asked": args.prompt_tokens,
        "shared_prefix_tokens": args.shared_prefix_tokens,
        "ignore_eos": args.ignore_eos,
        "seed": args.seed,
        "ok": len(good),
        "errors": sum(errors.values()),
        "error_kinds": errors,
        "wall_s": round(wall, 3),
        "output_tok_s": round(out / wall, 2),
        "total_tok_s": round((out + prompt) / wall, 2),
        "req_s": round(len(good) / wall, 3),
        "output_tokens_mean": round(out / len(good), 1) if good else 0,
        "prompt_tokens_mean": round(prompt / len(good), 1) if good else 0,
        "cached_tokens_mean": round(sum(r.cached_tokens for r in good) / len(good), 1)
        if good
        else 0,
        "counted_by": "usage" if good and all(r.by_usage for r in good) else "chunks",
        "chunks_mean": round(sum(r.chunks for r in good) / len(good), 1) if good else 0,
        "ttft_ms": percentiles([r.first - r.start for r in good if r.first]),
        "itl_ms": percentiles([g for r in good for g in r.gaps]),
        "tpot_ms": percentiles(tpot),
        "latency_ms": percentiles([r.end - r.start for r in good]),
        "tokens_per_word": round(client.tokens_per_word, 3),
    }


def table(s: dict) -> str:
    def p(d: dict[str, float]) -> str:
        return " / ".join(f"{d[k]:.1f}" for k in ("p50", "p95", "p99")) if d else "-"

    head = (
        "| label | users | in/out tok | ok/err | out tok/s | req/s | TTFT ms p50/95/99 "
        "| ITL ms p50/95/99 |"
    )
    row = (
        f"| {s['label'] or s['model']} | {s['users']} | {s['prompt_tokens_mean']:.0f}/"
        f"{s['output_tokens_mean']:.0f} | {s['ok']}/{s['errors']} | {s['output_tok_s']:.1f} | "
        f"{s['req_s']:.2f} | {p(s['ttft_ms'])} | {p(s['itl_ms'])} |"
    )
    return "\n".join([head, "|" + "---|" * 8, row])


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("--base-url", default="http://127.0.0.1:8000/v1")
    ap.add_argument("--model", required=True)
    ap.add_argument("--api-key", default="")
    ap.add_argument("--endpoint", choices=("chat", "completions"), default="chat")
    ap.add_argument("--users", type=int, default=1)
    ap.add_argument("--requests", type=int, default=8)
    ap.add_argument("--prompt-tokens", type=int, default=128, help="template tokens included")
    ap.add_argument("--shared-prefix-tokens", type=int, default=0, help="same system prefix on all")
    ap.add_argument("--max-tokens", type=int, default=128)
    ap.add_argument("--ignore-eos", action="store_true")
    ap.add_argument("--temperature", type=float, default=0.0)
    ap.add_argument("--extra", default="", help="JSON object merged into every request body")
    ap.add_argument("--no-usage", action="store_true", help="do not ask for stream usage")
    ap.add_argument("--keepalive", action="store_true", help="reuse connections")
    ap.add_argument("--seed", type=int, default=1)
    ap.add_argument("--warmup", type=int, default=1, help="requests sent before the clock starts")
    ap.add_argument("--ramp", type=float, default=0.0, help="seconds over which users start")
    ap.add_argument("--duration", type=float, default=100.0, help="no new request after this")
    ap.add_argument("--hard-limit", type=float, default=120.0, help="cancel all after this")
    ap.add_argument("--request-timeout", type=float, default=120.0)
    ap.add_argument("--label", default="")
    ap.add_argument("--json", default="", help="append the result as one JSON line to this file")
    args = ap.parse_args()
    result = asyncio.run(run(args))
    if args.json:
        with open(args.json, "a") as f:
            f.write(json.dumps(result) + "\n")
    print(table(result))
    print("".join(f"\n  {n} x {kind}" for kind, n in result["error_kinds"].items()))
    sys.exit(0 if result["ok"] else 1)


if __name__ == "__main__":
    main()
