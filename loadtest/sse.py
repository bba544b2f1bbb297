"""Server-sent events: answers that are streamed."""

from __future__ import annotations

from locust import task
from measuring import Measured, Talker, Wrong, events_of


class SseUser(Talker):
    weight = 4

    @task
    def ask(self) -> None:
        body = {
            "messages": [{"role": "user", "content": self.text()}],
            "max_tokens": self.options.max_tokens,
            "stream": True,
        }
        with Measured(self, "SSE") as answer:
            finished = False
            for event in events_of(self.post("/v1/chat/completions", body, stream=True)):
                for choice in event["choices"]:
                    if choice["delta"].get("content"):
                        answer.piece()
                    finished |= choice["finish_reason"] is not None
            if not finished:
                raise Wrong("the stream broke off")
