"""Users who go away in the middle of an answer."""

from __future__ import annotations

import random

from locust import task
from measuring import Measured, Talker, events_of


class LeavingUser(Talker):
    weight = 2

    @task
    def leave(self) -> None:
        body = {
            "messages": [{"role": "user", "content": self.text(random.choice((20, 300)))}],
            "max_tokens": 256,
            "stream": True,
        }
        with Measured(self, "leaving") as answer:
            answer.left = True
            response = self.post("/v1/chat/completions", body, stream=True)
            most = random.randrange(1, 16)
            for number, _ in enumerate(events_of(response)):
                if number >= most:
                    break
            response.close()
