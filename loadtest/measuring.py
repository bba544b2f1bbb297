"""How an answer is measured, the same for all scenarios, and what is told at the end."""

from __future__ import annotations

import json
import random
import time
from argparse import ArgumentParser
from collections.abc import Iterator
from typing import Any

import gevent
import requests
from locust import User, between, events
from locust.env import Environment

BUSY = (429, 503)
MAX_TRIES = 100
TIMEOUT_S = 300.0
WORDS = (
    "river mountain question letter number answer story window garden engine paper summer".split()
)
GOODPUT, REFUSED = "goodput", "refused"


@events.init_command_line_parser.add_listener
def add_options(parser: ArgumentParser) -> None:
    parser.add_argument("--slo-ttft-ms", type=float, default=2000.0, help="an objective met: TTFT")
    parser.add_argument("--slo-gap-ms", type=float, default=200.0, help="… and every gap")
    parser.add_argument("--max-tokens", type=int, default=48, help="of an answer")
    parser.add_argument("--api-key", default="", help="that every call brings")


class Wrong(Exception):
    """The server did what it should not."""


class Talker(User):
    """A user: think time, a connection of its own, and the entries that it makes."""

    abstract = True
    wait_time = between(0.5, 2.0)

    def __init__(self, environment: Environment):
        super().__init__(environment)
        self.options = environment.parsed_options
        self.http = requests.Session()
        if self.options.api_key:
            self.http.headers["Authorization"] = f"Bearer {self.options.api_key}"

    def on_stop(self) -> None:
        self.http.close()

    def text(self, num_words: int = 20) -> str:
        return " ".join(random.choices(WORDS, k=num_words))

    def entry(self, kind: str, name: str, ms: float, size: int = 0, error: Any = None) -> None:
        self.environment.events.request.fire(
            request_type=kind, name=name, response_time=ms, response_length=size,
            exception=error, context={},
        )  # fmt: skip

    def post(self, path: str, body: Any, *, stream: bool = False) -> requests.Response:
        """Comes back when it is told to. What it waits for so is an entry, and no error."""
        for _ in range(MAX_TRIES):
            response = self.http.post(self.host + path, json=body, stream=stream, timeout=TIMEOUT_S)
            if response.status_code not in BUSY or "Retry-After" not in response.headers:
                return response
            response.close()
            self.refused(response.status_code, float(response.headers["Retry-After"]))
        raise Wrong(f"{path}: still busy after {MAX_TRIES} tries")

    def refused(self, status: int, retry_s: float) -> None:
        self.entry(REFUSED, f"{status}, come back later", retry_s * 1000)
        gevent.sleep(retry_s + random.random())


class Measured:
    """One answer. Used as a context: what is raised in it is the answer's error."""

    def __init__(self, user: Talker, kind: str):
        self.user = user
        self.kind = kind
        self.num_tokens = 0
        self.first_ms = 0.0
        self.gaps_ms: list[float] = []
        self.left = False  # the user went away, and meant to
        self.begin()

    def begin(self) -> None:
        """The clock starts: the server has been asked, or is asked again."""
        self._began = self._last = time.perf_counter()

    def piece(self) -> None:
        """Text has come."""
        now = time.perf_counter()
        ms = (now - self._last) * 1000
        self._last = now
        self.num_tokens += 1
        if self.num_tokens == 1:
            self.first_ms = ms
            self.user.entry(self.kind, "TTFT", ms)
        else:
            self.gaps_ms.append(ms)
            self.user.entry(self.kind, "inter-token latency", ms)

    def __enter__(self) -> Measured:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if error is not None and not isinstance(error, Exception):  # the test ends: no answer
            return False
        whole_ms = (time.perf_counter() - self._began) * 1000
        user = self.user
        user.entry(self.kind, "whole answer", whole_ms, self.num_tokens, error)
        if not self.left and (self.first_ms or error is not None):  # of a whole answer: no TTFT
            self._judge(error)
        if error is None and self.num_tokens:
            user.entry(self.kind, "tokens/s of an answer", self.num_tokens / whole_ms * 1000)
        return True

    def _judge(self, error: object) -> None:
        options = self.user.options
        met = error is None and self.first_ms <= options.slo_ttft_ms
        met = met and max(self.gaps_ms, default=0.0) <= options.slo_gap_ms
        self.user.entry(GOODPUT, "% of streams within the objective", 100.0 * met)


def events_of(response: requests.Response) -> Iterator[dict[str, Any]]:
    """Server-sent events, as they come."""
    if response.status_code != 200:
        raise Wrong(f"HTTP {response.status_code}: {response.text[:200]}")
    for line in response.iter_lines(chunk_size=None):
        if line.startswith(b"data: {"):
            event = json.loads(line[6:])
            if "error" in event and event["error"]:
                raise Wrong(f"an error in the stream: {event['error']}")
            yield event


@events.init.add_listener
def tell_at_the_end(environment: Environment, **_: Any) -> None:
    environment.events.quit.add_listener(lambda **_: tell(environment))


def tell(environment: Environment) -> None:
    """Goodput, tokens and refusals, below locust's own table."""
    stats = environment.stats
    answers = [each for (name, _), each in stats.entries.items() if name == "whole answer"]
    met = [each for (_, kind), each in stats.entries.items() if kind == GOODPUT]
    refused = sum(each.num_requests for (_, kind), each in stats.entries.items() if kind == REFUSED)
    tokens = sum(each.total_content_length for each in answers)
    seconds = (
        max(1e-9, stats.total.last_request_timestamp - stats.total.start_time) if tokens else 1
    )
    options = environment.parsed_options
    share = sum(each.total_response_time for each in met) / max(
        1, sum(each.num_requests for each in met)
    )
    print(  # noqa: T201  what is asked for
        f"{sum(each.num_requests for each in answers)} answers, "
        f"{sum(each.num_failures for each in answers)} errors, {refused} refusals honoured; "
        f"{tokens / seconds:.1f} tokens/s\n"
        f"goodput: {share:.1f} % of streams with TTFT <= {options.slo_ttft_ms:g} ms and every gap "
        f"<= {options.slo_gap_ms:g} ms"
    )
