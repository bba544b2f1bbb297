"""/v1/chat/interactive, as the LMDeploy page has it: sessions that the server keeps."""

from __future__ import annotations

import json
import random

from locust import task
from measuring import Measured, Talker, Wrong

PATH = "/v1/chat/interactive"


class InteractiveUser(Talker):
    weight = 2

    @task
    def converse(self) -> None:
        id = random.randrange(2**31)
        body = {
            "session_id": id,
            "interactive_mode": True,
            "stream": True,
            "request_output_len": self.options.max_tokens,
        }
        for _ in range(random.randint(1, 3)):
            with Measured(self, "interactive") as answer:
                self._turn(body | {"prompt": self.text()}, answer)
            self.wait()
        self.post(PATH, {"session_id": id, "prompt": "", "request_output_len": 0}).close()

    def _turn(self, body: dict[str, object], answer: Measured) -> None:
        response = self.post(PATH, body, stream=True)
        if response.status_code != 200:
            raise Wrong(f"HTTP {response.status_code}: {response.text[:200]}")
        line = {}
        for data in response.iter_lines(chunk_size=None):
            line = json.loads(data)
            if line["text"]:
                answer.piece()
        if line.get("finish_reason") not in ("stop", "length"):
            raise Wrong(f"a turn ended with {line}")
