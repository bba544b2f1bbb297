"""REST: answers that come whole."""

from __future__ import annotations

from locust import task
from measuring import Measured, Talker, Wrong


class ChatUser(Talker):
    weight = 2

    @task
    def ask(self) -> None:
        body = {
            "messages": [{"role": "user", "content": self.text()}],
            "max_tokens": self.options.max_tokens,
        }
        with Measured(self, "REST") as answer:
            response = self.post("/v1/chat/completions", body)
            if response.status_code != 200:
                raise Wrong(f"HTTP {response.status_code}: {response.text[:200]}")
            answer.num_tokens = response.json()["usage"]["completion_tokens"]
