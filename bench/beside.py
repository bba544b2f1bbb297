#!/usr/bin/env python3
"""Two or more OpenAI-compatible servers, measured in turn in one run, on one machine.

    .venv/bin/python bench/beside.py --rounds 3 --json out.jsonl \
        --server 'lmserve=.venv/bin/lmserve serve api_server --server-port 18201' \
        --server 'llama=llama-server -m model.gguf --port 18202 --parallel 32 -c 65536 -t 2'

Each round starts every server once, alone, times it from the command to its first answer,
runs the workloads through bench/openai_load.py, notes the memory of its processes and ends it.
Prints a row a workload: each server's median, and the median of the ratios round by round.
The port is read from the command (`--server-port N` or `--port N`).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

LOAD = Path(__file__).with_name("openai_load.py")
WORKLOADS = {
    "1 user, 128/128": "--users 1 --requests 6 --prompt-tokens 128 --max-tokens 128",
    "8 users, 128/128": "--users 8 --requests 24 --prompt-tokens 128 --max-tokens 128",
    "32 users, 128/128": "--users 32 --requests 64 --prompt-tokens 128 --max-tokens 128",
    "8 users, 1024/64": "--users 8 --requests 16 --prompt-tokens 1024 --max-tokens 64",
    "8 users, shared 1000 + 32/64": (
        "--users 8 --requests 32 --prompt-tokens 32 --shared-prefix-tokens 1000 --max-tokens 64"
    ),
}
FIRST = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2, "model": "m"}


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("--server", action="append", required=True, metavar="NAME=COMMAND")
    ap.add_argument("--rounds", type=int, default=3)
    ap.add_argument("--only", default="", help="workloads whose name holds this word")
    ap.add_argument("--json", default="", help="append every figure here, one line a run")
    args = ap.parse_args()
    servers = dict(text.split("=", 1) for text in args.server)
    workloads = {name: flags for name, flags in WORKLOADS.items() if args.only in name}
    rounds = []
    for number in range(args.rounds):
        order = list(servers) if number % 2 == 0 else list(servers)[::-1]
        rounds.append({name: measure(servers[name], workloads, 7 + number) for name in order})
        if args.json:
            with open(args.json, "a") as file:
                file.write(json.dumps(rounds[-1]) + "\n")
    report(list(servers), list(workloads), rounds)


def measure(command: str, workloads: dict[str, str], seed: int) -> dict:
    """One server's life: start, every workload, memory, end."""
    found = re.search(r"--(?:server-)?port[ =](\d+)", command)
    if found is None:
        raise SystemExit(f"no --port in {command!r}")
    url = f"http://127.0.0.1:{found[1]}"
    began = time.monotonic()
    log = tempfile.TemporaryFile()
    process = subprocess.Popen(shlex.split(command), stdout=log, stderr=log, start_new_session=True)
    try:
        wait_for_answer(url, process, began + 180)
        result: dict = {"start_s": round(time.monotonic() - began, 2)}
        for name, flags in workloads.items():
            result[name] = load(url, flags, seed)
        result["pss_mib"] = round(memory_mib(process.pid))
        return result
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        log.close()


def wait_for_answer(url: str, process: subprocess.Popen, deadline: float) -> None:
    request = urllib.request.Request(
        f"{url}/v1/chat/completions",
        json.dumps(FIRST | {"model": model_of(url) or "m"}).encode(),
        {"Content-Type": "application/json"},
    )
    while True:
        try:
            request.data = json.dumps(FIRST | {"model": model_of(url) or "m"}).encode()
            with urllib.request.urlopen(request, timeout=120):
                return
        except (OSError, urllib.error.URLError):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"the server at {url} did not answer") from None
            time.sleep(0.02)


def model_of(url: str) -> str | None:
    try:
        with urllib.request.urlopen(f"{url}/v1/models", timeout=5) as response:
            return json.load(response)["data"][0]["id"]
    except (OSError, ValueError, LookupError):
        return None


def load(url: str, flags: str, seed: int) -> dict:
    with tempfile.NamedTemporaryFile("r", suffix=".json") as out:
        command = [sys.executable, str(LOAD), "--base-url", f"{url}/v1", "--ignore-eos"]
        command += ["--model", model_of(url) or "m", "--seed", str(seed), "--json", out.name]
        subprocess.run([*command, *shlex.split(flags)], check=True, stdout=subprocess.DEVNULL)
        full = json.loads(out.read())
    keys = ("output_tok_s", "ok", "errors", "cached_tokens_mean", "ttft_ms", "itl_ms", "tpot_ms")
    return {key: full[key] for key in keys}


def memory_mib(pid: int) -> float:
    """Proportional memory of a process and all below it."""
    total = 0.0
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        total += int(re.search(r"Pss:\s+(\d+)", text)[1]) / 1024
        children = Path(f"/proc/{pid}/task").glob("*/children")
        for child in " ".join(path.read_text() for path in children).split():
            total += memory_mib(int(child))
    except OSError:
        pass
    return total


def report(names: list[str], workloads: list[str], rounds: list[dict]) -> None:
    def median(name: str, *path: str) -> float:
        return statistics.median(dig(one[name], *path) for one in rounds)

    def ratios(name: str, *path: str) -> str:
        values = sorted(dig(one[names[0]], *path) / dig(one[name], *path) for one in rounds)
        return f"{statistics.median(values):.2f} ({values[0]:.2f}-{values[-1]:.2f})"

    others = names[1:]
    print("| output tok/s (TTFT ms / ITL ms, p50) |", " | ".join(names), end=" |")
    print("".join(f" {names[0]} : {name} |" for name in others))
    print("|" + "---|" * (1 + len(names) + len(others)))
    for work in workloads:
        cells = [
            f"{median(n, work, 'output_tok_s'):.1f} ({median(n, work, 'ttft_ms', 'p50'):.0f} / "
            f"{median(n, work, 'itl_ms', 'p50'):.1f})"
            for n in names
        ]
        cells += [ratios(n, work, "output_tok_s") for n in others]
        print(f"| {work} |", " | ".join(cells), "|")
    for key in ("start_s", "pss_mib"):
        cells = [f"{median(n, key):.1f}" for n in names] + [ratios(n, key) for n in others]
        print(f"| {key} |", " | ".join(cells), "|")
    print(f"{len(rounds)} rounds, {os.cpu_count()} cores; ratios: median (least-greatest)")


def dig(value: dict, *path: str) -> float:
    found: object = value
    for key in path:
        assert isinstance(found, dict)
        found = found[key]
    assert isinstance(found, int | float)
    return float(found)


if __name__ == "__main__":
    main()
