"""A conversation kept by a real server over the default model: only the new turn is run."""

from __future__ import annotations

import json

import pytest
import requests

pytestmark = [pytest.mark.network, pytest.mark.timeout(300)]
PATH = "/v1/chat/interactive"
TURN = {"session_id": 907, "interactive_mode": True, "temperature": 0, "request_output_len": 12}


def test_the_second_turn_reuses_the_first(default_server):
    url = default_server.url + PATH
    first = requests.post(url, json=TURN | {"prompt": "Hello! How are you?"}, timeout=120)
    said = first.json()
    assert said["tokens"] > 0 and said["text"] and said["history_tokens"] == 0
    second = requests.post(url, json=TURN | {"prompt": "Why?", "stream": True}, timeout=120)
    lines = [json.loads(line) for line in second.content.splitlines()]
    history = lines[0]["history_tokens"]
    # all that was run of the first turn: its end token is not part of the history
    assert history == said["input_tokens"] + said["tokens"] - (said["finish_reason"] == "stop")
    assert history - 1 <= int(second.headers["X-Cached-Tokens"]) <= history
    assert second.headers["X-Session-Id"] == "907"
    assert [line["tokens"] for line in lines] == sorted(line["tokens"] for line in lines)
    assert (lines[-1]["text"], lines[-1]["finish_reason"] in ("stop", "length")) == ("", True)
    end = {"prompt": "", "session_id": 907, "request_output_len": 0}
    assert requests.post(url, json=end, timeout=120).json()["finish_reason"] == "stop"
    again = requests.post(url, json=TURN | {"prompt": "Hello! How are you?"}, timeout=120).json()
    assert again["history_tokens"] == 0
