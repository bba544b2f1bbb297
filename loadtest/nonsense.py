"""Bad input, which must get a 4xx and hurt nobody else."""

from __future__ import annotations

import random
import time

from locust import task
from measuring import BUSY, Talker, Wrong

USER = {"role": "user", "content": "hi"}
CHAT = "/v1/chat/completions"
NONSENSE: tuple[tuple[str, object], ...] = (
    (CHAT, {"messages": 5}),
    (CHAT, {"messages": []}),
    (CHAT, {"messages": [USER], "max_tokens": -1}),
    (CHAT, {"messages": [USER], "n": 2**31}),
    (CHAT, {"messages": [USER], "temperature": "hot"}),
    (CHAT, {"messages": [{"role": "user", "content": "x " * 20_000}]}),
    ("/v1/completions", {"prompt": [-1]}),
    ("/v1/responses", {"input": "x", "previous_response_id": "resp_none"}),
    ("/v1/chat/interactive", {"prompt": None}),
    ("/v1/nowhere", {}),
)


class NonsenseUser(Talker):
    weight = 1

    @task
    def send(self) -> None:
        path, body = random.choice(NONSENSE)
        began, error = time.perf_counter(), None
        response = self.post(path, body)
        status = response.status_code
        if not 400 <= status < 500 or status in BUSY:
            error = Wrong(f"{path} {str(body)[:80]} got {status}")
        self.entry("nonsense", "refusal", (time.perf_counter() - began) * 1000, error=error)
