#!/usr/bin/env python3
"""The front end alone: `--engine mock` through SSE, beside a bare aiohttp handler.

    .venv/bin/python bench/frontend.py                    # the cost of a token, as times bare
    .venv/bin/python bench/frontend.py --flat             # … by number of streams and of tokens
    .venv/bin/python bench/frontend.py --rate 40          # 256 streams at a pace: how late, merged

On a machine with other work, begin the line with `chrt -r 1`: it takes what it needs.

A mock engine says words, so what is measured is everything that lmserve does for a token outside
the engine: detokeniser, events, JSON, socket. The bare handler writes the very chunks that lmserve
wrote, one write each, with nothing computed. Both run on one core, each case in pairs that take
turns; the client reads on the other. Costs are the server's CPU time (all its threads) a token;
"merged" is the share of deltas that went out together with another, because a stream was late.

With `--rate`, the server's own histogram says how long it took from the moment a step was due until
the last of its text was written to its socket.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import statistics
import sys
import tempfile
import time
import urllib.request
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from streams import CHAT, Server, bare_command, read_all, request_body, transcript

FLAT = "1x1000,16x1000,64x1000,256x1000,64x1,16x100,16x16000"
LEAST_TOKENS, MOST_TIMES = 10_000, 10  # in one measurement, by repeating what is shorter
WANTED_RATIO, WANTED_MERGED, WANTED_P99_S = 1.4, 0.05, 0.02
LATENESS = "lmserve:step_delivery_seconds"


@dataclass
class Case:
    """So many streams at once, of so many tokens."""

    streams: int
    tokens: int
    num_events: int = 0  # of one answer, read alone
    ours_us: list[float] = field(default_factory=list)  # a token, of each pair
    bare_us: list[float] = field(default_factory=list)
    merged: list[float] = field(default_factory=list)

    @classmethod
    def of(cls, text: str) -> Case:
        streams, _, tokens = text.partition("x")
        return cls(int(streams), int(tokens))

    def measure(self, server: Server, path: str, body: bytes) -> tuple[float, float]:
        """CPU microseconds a token, and the share of events missing."""
        times = min(MOST_TIMES, math.ceil(LEAST_TOKENS / (self.streams * self.tokens)))
        cpu, num_events = server.cpu_s(), 0
        for _ in range(times):
            num_events += read_all(server.port, path, body, self.streams)[0]
        num = times * self.streams
        cost_us = (server.cpu_s() - cpu) / (num * self.tokens) * 1e6
        return cost_us, 1 - num_events / (num * self.num_events)

    def pair(self, ours: Server, bare: Server, path: str) -> None:
        """Ours begins one pair, the bare handler the next."""
        if len(self.bare_us) % 2:
            self.bare_us.append(self.measure(bare, f"/{self.tokens}", b"{}")[0])
        cost, merged = self.measure(ours, path, request_body(self.tokens, path))
        self.ours_us.append(cost)
        self.merged.append(merged)
        if len(self.bare_us) < len(self.ours_us):
            self.bare_us.append(self.measure(bare, f"/{self.tokens}", b"{}")[0])

    @property
    def ratios(self) -> list[float]:
        return [ours / bare for ours, bare in zip(self.ours_us, self.bare_us, strict=True)]

    def row(self) -> list[str]:
        return [
            f"{self.streams} x {self.tokens}",
            spread(self.ours_us, 1),
            spread(self.bare_us, 1),
            spread(self.ratios, 2),
            f"{100 * max(self.merged):.2f}",
        ]


def spread(values: list[float], digits: int) -> str:
    least, mid, most = min(values), statistics.median(values), max(values)
    return f"{mid:.{digits}f} ({least:.{digits}f}-{most:.{digits}f})"


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def serve(folder: str, core: int, *flags: str) -> Server:
    command = [sys.executable, "-m", "lmserve", "serve", "api_server", "--engine", "mock"]
    command += ["--server-port", "0", "--log-level", "warning", "--data-dir", folder]
    return Server([*command, "--session-len", "20000", *flags], core)


def costs(args: argparse.Namespace, folder: str) -> None:
    cases = [Case.of(text) for text in (FLAT if args.flat else args.cases).split(",")]
    path, core = args.path, args.core
    with closing(serve(folder, core)) as ours:
        chunks = {}
        for case in cases:
            sent = transcript(ours.port, path, request_body(case.tokens, path))
            case.num_events = "".join(sent).count("data: {")
            if case.num_events < case.tokens:
                print(
                    f"alone, {case.tokens} tokens come in {case.num_events} events: at full speed "
                    "this path merges them, and the costs say little",
                    file=sys.stderr,
                )
            chunks[str(case.tokens)] = sent
        transcripts = Path(folder, "transcripts.json")
        transcripts.write_text(json.dumps(chunks))
        with closing(Server(bare_command(transcripts), core)) as bare:
            for _ in range(args.pairs):
                for case in cases:
                    case.pair(ours, bare, path)
    head = ["streams x tokens", "CPU µs a token", "bare", f"times bare ({WANTED_RATIO} wanted)",
            "merged %, at most"]  # fmt: skip
    print(table(head, [case.row() for case in cases]))


def lateness(args: argparse.Namespace, folder: str) -> None:
    streams, tokens = args.streams, round(args.rate * args.seconds)
    with closing(serve(folder, args.core, "--mock-tokens-s", str(args.rate))) as ours:
        body = request_body(tokens)
        before, cpu = histogram(ours.port), ours.cpu_s()
        num_events, wall_s = read_all(ours.port, CHAT, body, streams)
        cpu = ours.cpu_s() - cpu
        counts = {bound: num - before.get(bound, 0) for bound, num in histogram(ours.port).items()}
    num_expected = streams * (tokens + 2)  # the role, the end
    print(
        f"{streams} streams at {tokens / wall_s:.1f} tok/s each: "
        f"{counts[math.inf]:.0f} steps, step to socket p50 <= {quantile(counts, 0.5) * 1e3:g} ms, "
        f"p99 <= {quantile(counts, 0.99) * 1e3:g} ms ({WANTED_P99_S * 1e3:g} wanted), "
        f"most <= {quantile(counts, 1) * 1e3:g} ms; "
        f"merged {100 * (1 - num_events / num_expected):.2f} % ({100 * WANTED_MERGED:g} wanted); "
        f"{cpu / wall_s * 100:.0f} % of a core"
    )


def histogram(port: int) -> dict[float, float]:
    """Steps by how late they were: at most so many seconds, cumulative."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        text = answer.read().decode()
    found = re.findall(rf'^{LATENESS}_bucket{{.*le="([^"]+)".*}} (\S+)$', text, re.M)
    return {float(bound): float(num) for bound, num in found}


def quantile(counts: dict[float, float], share: float) -> float:
    """The bucket's upper bound: no more is known."""
    total = counts[math.inf]
    return min(bound for bound, num in counts.items() if num >= share * total)


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    ap.add_argument("--path", default=CHAT, help="or /v1/responses")
    ap.add_argument("--cases", default="64x1000,256x1000", help="streams x tokens, …")
    ap.add_argument("--flat", action="store_true", help=f"the cases {FLAT}")
    ap.add_argument("--pairs", type=int, default=11)
    ap.add_argument("--rate", type=float, default=0.0, help="tokens a second and stream")
    ap.add_argument("--streams", type=int, default=256, help="with --rate")
    ap.add_argument("--seconds", type=float, default=20.0, help="with --rate")
    ap.add_argument("--core", type=int, default=0, help="of the servers; the client has the others")
    args = ap.parse_args()
    others = os.sched_getaffinity(0) - {args.core}
    if others:
        os.sched_setaffinity(0, others)
    print(f"load {os.getloadavg()[0]:.1f}, {time.strftime('%Y-%m-%d %H:%M')}", file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder:
        lateness(args, folder) if args.rate else costs(args, folder)


if __name__ == "__main__":
    main()
