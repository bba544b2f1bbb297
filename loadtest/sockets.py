"""Conversations over a WebSocket: turns that follow each other, and one that is cut and resumed."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

import websocket
from locust import task
from measuring import BUSY, MAX_TRIES, TIMEOUT_S, Measured, Talker, Wrong

ENDS = ("response.completed", "response.incomplete")
CUT_SHARE = 0.3  # of the answers are cut off in the middle, without a goodbye, and resumed


class SocketUser(Talker):
    weight = 3

    @task
    def converse(self) -> None:
        socket = previous = None
        try:
            for _ in range(random.randint(1, 4)):
                with Measured(self, "WebSocket") as answer:
                    if socket is None:
                        socket = self._connect()
                        answer.begin()
                    socket, previous = self._turn(socket, previous, answer)
                if previous is None:  # the turn failed: the conversation is over
                    break
                self.wait()
        finally:
            if socket is not None:
                socket.close()

    def _connect(self) -> websocket.WebSocket:
        url = self.host.replace("http", "ws", 1) + "/v1/responses"
        key = self.options.api_key
        headers = [f"Authorization: Bearer {key}"] if key else []
        for _ in range(MAX_TRIES):
            try:
                return websocket.create_connection(url, timeout=TIMEOUT_S, header=headers)
            except websocket.WebSocketBadStatusException as error:
                retry = (error.resp_headers or {}).get("retry-after")
                if error.status_code not in BUSY or retry is None:
                    raise
                self.refused(error.status_code, float(retry))
        raise Wrong(f"{url}: still busy after {MAX_TRIES} tries")

    def _turn(
        self, socket: websocket.WebSocket, previous: str | None, answer: Measured
    ) -> tuple[websocket.WebSocket, str | None]:
        create: dict[str, Any] = {
            "type": "response.create",
            "input": self.text(),
            "max_output_tokens": self.options.max_tokens,
        }
        if previous is not None:
            create["previous_response_id"] = previous
        socket.send(json.dumps(create))
        cut_after = random.randrange(2, 20) if random.random() < CUT_SHARE else None
        id = None
        while True:
            for event in _events(socket):
                if event["type"] == "error":
                    if self._is_busy(event):
                        answer.begin()
                        socket.send(json.dumps(create))
                        continue
                    raise Wrong(str(event)[:300])
                id = event["response"]["id"] if "response" in event else id
                if event["type"] == "response.output_text.delta":
                    answer.piece()
                if event["type"] in ENDS:
                    return socket, id
                number = event.get("sequence_number", 0)
                if id is not None and cut_after is not None and number >= cut_after:
                    cut_after = None
                    socket = self._resume(socket, id, number)
                    break
            else:
                raise Wrong("the server closed the WebSocket")

    def _resume(self, socket: websocket.WebSocket, id: str, number: int) -> websocket.WebSocket:
        socket.shutdown()  # without a goodbye
        socket = self._connect()
        resume = {"type": "session.resume", "response_id": id, "starting_after": number}
        socket.send(json.dumps(resume))
        return socket

    def _is_busy(self, event: dict[str, Any]) -> bool:
        error = event.get("error", event)
        if event.get("status") not in (429, 503) and error.get("code") != "overloaded":
            return False
        self.refused(429, float(error.get("headers", {}).get("Retry-After", 1.0)))
        return True


def _events(socket: websocket.WebSocket) -> Iterator[dict[str, Any]]:
    while text := socket.recv():
        yield json.loads(text)
