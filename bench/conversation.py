#!/usr/bin/env python3
"""Time to the first token of turn 10 of a long conversation: cold, warm, forked, restored from
disk after a restart, with a draft; beside llama-server with its prompt cache, in the same run.

    .venv/bin/python bench/conversation.py --rounds 5 \
        --llama 'llama-server -m model.gguf --port 18202 --parallel 4 -c 32768 -t 2'

Each way has a conversation of its own, so that none is helped by another's cache: nine turns of
about 250 tokens (`--turn-words`), the ninth of them answered by the server, then the timed one.
Prints each way's median time, its spread, and the medians of the ratios round by round.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import random
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

BASE = Path(sys.executable).with_name("lmserve")
WORDS = Path(__file__).read_text().split()
COMMON = {"temperature": 0, "max_output_tokens": 8}


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    ap.add_argument("--port", type=int, default=18301, help="of lmserve")
    ap.add_argument("--llama", default="", help="command of a llama-server, with its --port")
    ap.add_argument("--rounds", type=int, default=5)
    ap.add_argument("--turn-words", type=int, default=40, help="of each message of the history")
    ap.add_argument("--last-words", type=int, default=30, help="of the timed turn's message")
    ap.add_argument("--json", default="", help="append every figure here, one line a round")
    args = ap.parse_args()
    rounds = []
    for number in range(args.rounds):
        talk = Talk(random.Random(number), args.turn_words, args.last_words)
        one = lmserve_round(args.port, talk)
        if args.llama:
            one |= llama_round(args.llama, talk)
        rounds.append(one)
        print(json.dumps(one), file=sys.stderr)
        if args.json:
            with open(args.json, "a") as file:
                file.write(json.dumps(one) + "\n")
    report(rounds)


class Talk:
    """Words for conversations that share no beginning."""

    def __init__(self, source: random.Random, turn_words: int, last_words: int):
        self._source = source
        self._turn_words = turn_words
        self._last_words = last_words

    def history(self) -> list[dict]:
        """Eight turns and the ninth's question."""
        roles = ["user", "assistant"] * 8 + ["user"]
        return [{"role": role, "content": self._text(self._turn_words)} for role in roles]

    def question(self) -> str:
        return self._text(self._last_words)

    def _text(self, num_words: int) -> str:
        return " ".join(self._source.choices(WORDS, k=num_words))


# --- lmserve ------------------------------------------------------------------------------


def lmserve_round(port: int, talk: Talk) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        command = [str(BASE), "serve", "api_server", "--server-port", str(port)]
        command += ["--data-dir", folder, "--spill-after-s", "0.2"]
        times = {}
        with server(command, port) as call:
            call.warm_up()
            times["cold"] = call.turn("cold", *call.begun("cold", talk), cold=True)
            times["warm"] = call.turn("warm", *call.ninth("warm", talk))
            _, question = call.ninth("fork", talk)
            call.json("/v1/sessions/fork/fork", {"id": "forked"})
            times["forked"] = call.turn("forked", "forked", question)
            _, question = call.ninth("draft", talk)
            call.type("draft", question)
            times["with draft"] = call.turn("draft", "draft", question)
            _, question = call.ninth("kept", talk)
            wait_for_file(Path(folder) / "kv", call.num_spilled)
        with server(command, port) as call:
            call.warm_up()
            times["restored"] = call.turn("restored", "kept", question)
        return times


class Lmserve:
    def __init__(self, port: int):
        self.port = port
        self.num_spilled = 0  # conversations that should be on disk

    def warm_up(self) -> None:
        """The first answer of a server pays for what no later one does."""
        self.json("/v1/responses", {"input": "Hi", "store": False} | COMMON)

    def begun(self, id: str, talk: Talk) -> tuple[str, list[dict]]:
        *history, ninth = talk.history()
        answer = {"role": "assistant", "content": "Well."}
        self.json("/v1/sessions", {"id": id, "messages": [*history, ninth, answer]})
        return id, talk.question()

    def ninth(self, id: str, talk: Talk) -> tuple[str, str]:
        """A conversation whose ninth turn this server answered: it is warm."""
        *history, ninth = talk.history()
        self.json("/v1/sessions", {"id": id, "messages": history})
        self.json("/v1/responses", {"conversation": id, "input": ninth["content"]} | COMMON)
        self.num_spilled += 1
        return id, talk.question()

    def type(self, id: str, text: str) -> None:
        """Some characters at a time, as a person types; then a moment's thought."""
        for end in range(20, len(text) + 20, 20):
            self.json(f"/v1/sessions/{id}/draft", {"text": text[:end]})
            time.sleep(0.05)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if self.json(f"/v1/sessions/{id}/draft", {"text": text})["state"] == "ready":
                return
            time.sleep(0.05)
        raise SystemExit("the draft was not run within 60 s")

    def turn(self, what: str, id: str, question: str, *, cold: bool = False) -> dict:
        """The timed turn."""
        body = {"conversation": id, "input": question, "stream": True} | COMMON
        first_s, last = stream(self.port, "/v1/responses", body, b'"response.output_text.delta"')
        usage = json.loads(last)["response"]["usage"]
        cached = usage["input_tokens_details"]["cached_tokens"]
        if cold != (cached < usage["input_tokens"] / 2):
            raise SystemExit(f"{what}: {cached} of {usage['input_tokens']} tokens were cached")
        return {"s": first_s, "tokens": usage["input_tokens"], "cached": cached}

    def json(self, path: str, body: dict) -> dict:
        return post(self.port, path, body)


def wait_for_file(folder: Path, num: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if len(list(folder.glob("*.kv"))) >= num:
            return
        time.sleep(0.1)
    raise SystemExit(f"{num} conversations were not written to disk within 60 s")


# --- llama-server -------------------------------------------------------------------------


def llama_round(command: str, talk: Talk) -> dict:
    words = shlex.split(command)
    port = int(words[words.index("--port") + 1])
    with server(words, port):
        llama_turn(port, [{"role": "user", "content": "Hi"}])
        cold = talk.history()
        cold += [{"role": "assistant", "content": "Well."}]
        times = {"llama cold": llama_turn(port, [*cold, user(talk.question())])}
        warm = talk.history()
        answer = post(port, "/v1/chat/completions", llama_body(warm))
        warm.append({"role": "assistant", "content": answer["choices"][0]["message"]["content"]})
        times["llama warm"] = llama_turn(port, [*warm, user(talk.question())])
    return times


def llama_body(messages: list[dict]) -> dict:
    return {"messages": messages, "max_tokens": 8, "temperature": 0, "cache_prompt": True}


def llama_turn(port: int, messages: list[dict]) -> dict:
    body = llama_body(messages) | {"stream": True}
    first_s, last = stream(port, "/v1/chat/completions", body, b'"content":"')
    timings = json.loads(last).get("timings", {})
    return {"s": first_s, "cached": timings.get("cache_n"), "tokens": timings.get("prompt_n")}


def user(text: str) -> dict:
    return {"role": "user", "content": text}


# --- both ---------------------------------------------------------------------------------


@contextlib.contextmanager
def server(command: list[str], port: int) -> Iterator[Lmserve]:
    """Runs it until the end of the block."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        try:
            wait_until_healthy(port, process)
            yield Lmserve(port)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def wait_until_healthy(port: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", "/health")
            if connection.getresponse().status == 200:
                return
        time.sleep(0.05)
    raise SystemExit(f"no server is ready on port {port}")


def post(port: int, path: str, body: dict) -> dict:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    with contextlib.closing(connection):
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        text = response.read()
        if response.status != 200:
            raise SystemExit(f"{path}: {response.status} {text[:300]!r}")
        return json.loads(text)


def stream(port: int, path: str, body: dict, mark: bytes) -> tuple[float, bytes]:
    """Seconds from the request to the first line with the mark; the last event's data."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    with contextlib.closing(connection):
        began = time.perf_counter()
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        first_s, last = None, b""
        for line in response:
            if line.startswith(b"data: ") and line.strip() != b"data: [DONE]":
                last = line.removeprefix(b"data: ")
                if first_s is None and mark in last and b'"content":""' not in last:
                    first_s = time.perf_counter() - began
        if first_s is None:
            raise SystemExit(f"{path}: {response.status}, no token: {last[:300]!r}")
        return first_s, last


def report(rounds: list[dict]) -> None:
    def ratio(name: str, other: str) -> str:
        values = sorted(one[name]["s"] / one[other]["s"] for one in rounds)
        return f"{statistics.median(values):.2f} ({values[0]:.2f}-{values[-1]:.2f})"

    print(
        "| turn 10 | TTFT ms, median (least-greatest) | prompt tokens | of them cached | to cold |"
    )
    print("|---|---|---|---|---|")
    for name in rounds[0]:
        times = sorted(one[name]["s"] * 1000 for one in rounds)
        tokens, cached = (
            statistics.median([one[name][key] or 0 for one in rounds])
            for key in ("tokens", "cached")
        )
        cold = "llama cold" if name.startswith("llama") else "cold"
        print(
            f"| {name} | {statistics.median(times):.0f} ({times[0]:.0f}-{times[-1]:.0f}) "
            f"| {tokens:.0f} | {cached:.0f} | {ratio(name, cold)} |"
        )
    print(f"with draft : warm {ratio('with draft', 'warm')}")
    if "llama warm" in rounds[0]:
        print(f"warm : llama warm {ratio('warm', 'llama warm')}")
    print(f"{len(rounds)} rounds, {os.cpu_count()} cores; ratios: median (least-greatest)")


if __name__ == "__main__":
    main()
