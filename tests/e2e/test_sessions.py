"""Conversations over real engines and real processes: what was run is reused, nothing that was
acknowledged is lost."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import urllib.request
from contextlib import asynccontextmanager

import pytest

from lmserve.bridge.select import make_handle
from lmserve.messages import pack_ids
from lmserve.service.generate import Service, collect
from lmserve.service.metrics import Metrics
from lmserve.service.sessions.sessions import SessionKey, Sessions
from lmserve.settings import EngineSettings, SessionSettings, Settings
from lmserve.types import GenerateRequest
from tests.e2e.conftest import serving

KEY = SessionKey("", "1")
NUM_TOKENS = 12


@asynccontextmanager
async def conversing(model, folder, engine="thread"):
    settings = Settings(
        engine=EngineSettings(
            model=str(model.path), engine=engine, dtype="float32", threads=1, device="cpu",
            stuck_after_s=30.0,
        ),
        sessions=SessionSettings(data_dir=str(folder)),
    )  # fmt: skip
    handle = make_handle(settings.engine)
    service = Service(handle, settings, Metrics(handle, settings))
    sessions = Sessions(service, settings.sessions)
    await sessions.open()
    await handle.start()
    try:
        await asyncio.wait_for(handle.wait_ready(), 50)
        yield sessions
    finally:
        service.close()
        await handle.close()
        await sessions.close()


async def say(sessions, text):
    """A greedy turn: its usage, and all tokens of the session after it."""
    request = GenerateRequest(
        messages=[{"role": "user", "content": text}],
        temperature=0.0, max_tokens=NUM_TOKENS, ignore_eos=True,
    )  # fmt: skip
    turn = await sessions.turn(KEY, request, keep=True)
    _, done = await collect(turn.generation)
    await turn.settled()
    key = (await sessions._service.model_text()).text_key
    line = await sessions.keeper.run(lambda store: store.load(KEY, key))
    assert line.history.num_messages == len(line.messages)
    return done.usage, line.history.token_ids


@pytest.mark.parametrize("family", ["llama", "mistral"])
async def test_a_second_turn_runs_only_what_is_new(tiny_models, family, tmp_path):
    model = tiny_models(family)
    async with conversing(model, tmp_path) as sessions:
        first, before = await say(sessions, "hello there")
        second, after = await say(sessions, "and then?")
    assert len(before) == first.prompt_tokens + NUM_TOKENS
    assert after[: len(before)] == before
    assert second.cached_tokens >= len(before) - 1  # the last token's KV was never needed
    prompt, answer = after[:-NUM_TOKENS], after[-NUM_TOKENS:]
    assert answer == model.golden(prompt, NUM_TOKENS)  # of the flat history, from nothing


async def test_a_killed_engine_costs_time_only(tiny_llama, tmp_path):
    async with conversing(tiny_llama, tmp_path, "child") as sessions:
        _, before = await say(sessions, "hello there")
        handle = sessions._service._handle
        pid = handle.info.pid
        os.kill(pid, signal.SIGKILL)
        async with asyncio.timeout(50):
            while handle.info is None or handle.info.pid == pid:
                await handle.changed()
        usage, after = await say(sessions, "and then?")
    assert usage.cached_tokens == 0
    assert after[: len(before)] == before
    assert after[-NUM_TOKENS:] == tiny_llama.golden(after[:-NUM_TOKENS], NUM_TOKENS)


async def test_a_reopened_store_goes_on_from_the_very_tokens(tiny_llama, tmp_path):
    async with conversing(tiny_llama, tmp_path) as sessions:
        _, before = await say(sessions, "hello there")
    async with conversing(tiny_llama, tmp_path) as sessions:
        _, after = await say(sessions, "and then?")
    assert pack_ids(after).startswith(pack_ids(before))
    assert after[-NUM_TOKENS:] == tiny_llama.golden(after[:-NUM_TOKENS], NUM_TOKENS)


def post(url: str, **fields):
    body = json.dumps({"session_id": 5, "interactive_mode": True, **fields}).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{url}/v1/chat/interactive", body, headers)
    return urllib.request.urlopen(request, timeout=30)


def turn(url: str, text: str) -> tuple[int, int]:
    """Tokens in the session before and after."""
    answer = json.load(post(url, prompt=text, request_output_len=7))
    assert answer["finish_reason"] == "length"
    before = answer["history_tokens"]
    return before, before + answer["input_tokens"] + answer["tokens"]


def test_a_killed_server_loses_nothing_acknowledged(tmp_path):
    args = ("--engine", "mock", "--mock-tokens-s", "200", "--data-dir", str(tmp_path))
    expected = 0
    for num in range(3):
        with serving(*args) as server:
            before, expected_now = turn(server.url, f"turn {num}")
            assert before == expected
            expected = expected_now
            with post(server.url, prompt="cut", request_output_len=5000, stream=True) as stream:
                stream.readline()  # in mid-answer, which was not acknowledged
                os.kill(server.pid, signal.SIGKILL)


@pytest.mark.network
@pytest.mark.timeout(300)
def test_the_default_model_answers_as_from_the_flat_history(default_server):
    greedy = {"temperature": 0.0, "session_id": 4321}
    questions = ["Name a colour.", "Name a warmer one, and say why in a sentence."]
    messages, held = [], 0
    for question in questions:
        with post(default_server.url, prompt=question, request_output_len=24, **greedy) as reply:
            said, cached = json.load(reply), int(reply.headers["X-Cached-Tokens"])
        assert said["history_tokens"] == held
        assert cached >= held - 1
        held += said["input_tokens"] + said["tokens"] - (said["finish_reason"] == "stop")
        messages.append({"role": "user", "content": question})
        body = {"messages": messages, "temperature": 0.0, "max_tokens": 24}
        flat = urllib.request.Request(
            f"{default_server.url}/v1/chat/completions",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        answer = json.load(urllib.request.urlopen(flat, timeout=60))["choices"][0]["message"]
        assert said["text"] == answer["content"]
        messages.append({"role": "assistant", "content": said["text"]})
