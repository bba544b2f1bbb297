"""Every curl line of LMDeploy's RESTful page, as it stands there but for host and model."""

from __future__ import annotations

import json
import shutil
import subprocess
from typing import Any

import pytest

pytestmark = [
    pytest.mark.network,
    pytest.mark.timeout(120),  # an answer may go on for long: the page names no limit
    pytest.mark.skipif(shutil.which("curl") is None, reason="no curl on the PATH"),
]

LIST_MODELS = "curl http://{server_ip}:{server_port}/v1/models"

INTERACTIVE_CHAT = r"""
curl http://{server_ip}:{server_port}/v1/chat/interactive \
  -H "Content-Type: application/json" \
  -d '{
    "prompt": "Hello! How are you?",
    "session_id": 1,
    "interactive_mode": true
  }'
"""

CHAT_COMPLETIONS = r"""
curl http://{server_ip}:{server_port}/v1/chat/completions \
  -H "Content-Type: application/json" \
  -d '{
    "model": "internlm-chat-7b",
    "messages": [{"role": "user", "content": "Hello! How are you?"}]
  }'
"""

TEXT_COMPLETIONS = r"""
curl http://{server_ip}:{server_port}/v1/completions \
  -H 'Content-Type: application/json' \
  -d '{
  "model": "llama",
  "prompt": "two steps to build a house:"
}'
"""


def shell(command: str, url: str) -> Any:
    """The JSON that the command prints, run as somebody would who pastes it."""
    host, _, port = url.removeprefix("http://").partition(":")
    command = command.replace("{server_ip}", host).replace("{server_port}", port)
    for name in ("internlm-chat-7b", "llama"):
        command = command.replace(f'"{name}"', '"SmolLM2-135M-Instruct"')
    quiet = command.replace("curl ", "curl --silent --show-error --max-time 110 ", 1)
    done = subprocess.run(["bash", "-c", quiet], capture_output=True, text=True, timeout=115)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_list_models(default_server):
    answer = shell(LIST_MODELS, default_server.url)
    assert answer["object"] == "list"
    assert [model["id"] for model in answer["data"]] == ["SmolLM2-135M-Instruct"]


def test_interactive_chat(default_server):
    first = shell(INTERACTIVE_CHAT, default_server.url)
    keys = ["text", "tokens", "input_tokens", "history_tokens", "finish_reason"]
    assert list(first) == keys
    assert first["text"] and first["tokens"] > 0 and first["finish_reason"] in ("stop", "length")
    assert first["history_tokens"] == 0
    again = shell(INTERACTIVE_CHAT, default_server.url)
    assert again["history_tokens"] >= first["input_tokens"] + first["tokens"] - 1


def test_chat_completions(default_server):
    answer = shell(CHAT_COMPLETIONS, default_server.url)
    assert answer["object"] == "chat.completion"
    assert answer["choices"][0]["message"]["role"] == "assistant"
    assert answer["choices"][0]["message"]["content"]


def test_text_completions(default_server):
    answer = shell(TEXT_COMPLETIONS, default_server.url)
    assert answer["object"] == "text_completion"
    assert answer["usage"]["completion_tokens"] <= 16
    assert answer["choices"][0]["text"]
