"""Warm conversations and drafts over a real engine: what is reused, with the same answers."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import asynccontextmanager

import pytest

from lmserve.bridge.select import make_handle
from lmserve.service.generate import Service, collect
from lmserve.service.metrics import Metrics
from lmserve.service.sessions.sessions import UNSET, SessionKey, Sessions
from lmserve.service.store import keys as store_keys
from lmserve.service.warm.drafts import Change, Drafts
from lmserve.service.warm.warmth import Warmth
from lmserve.settings import EngineSettings, SessionSettings, Settings, WarmSettings
from lmserve.types import GenerateRequest

KEY, FORK = SessionKey("me", "a"), SessionKey("me", "b")
OTHERS = SessionKey("you", "a")
NUM_TOKENS = 12


class World:
    """One life of a server, without its routes."""

    def __init__(self, model, folder, engine, warm):
        self.settings = Settings(
            engine=EngineSettings(
                model=str(model.path), engine=engine, dtype="float32", threads=1, device="cpu",
                stuck_after_s=30.0,
            ),
            sessions=SessionSettings(data_dir=str(folder)),
            warm=warm,
        )  # fmt: skip
        self.folder = folder
        self.handle = make_handle(self.settings.engine)
        self.metrics = Metrics(self.handle, self.settings)
        self.service = Service(self.handle, self.settings, self.metrics)
        self.warmth = Warmth(
            self.handle, warm, self.metrics, namespace_of=self.service.tenants.namespace
        )
        self.sessions = Sessions(self.service, self.settings.sessions, warmth=self.warmth)
        self.drafts = Drafts(self.service, self.sessions, self.warmth, warm)

    async def open(self):
        await self.sessions.open()
        await self.handle.start()
        await self.warmth.open(self.folder, lambda: self.sessions.keeper.run(store_keys.living))
        await asyncio.wait_for(self.handle.wait_ready(), 50)

    async def close(self):
        await self.drafts.close()
        self.service.close()
        await self.warmth.close()
        await self.handle.close()
        await self.sessions.close()

    async def say(self, text, key=KEY, **fields):
        """A greedy turn: its usage, its prompt and the tokens of its answer."""
        request = GenerateRequest(
            messages=[{"role": "user", "content": text}],
            temperature=0.0, max_tokens=NUM_TOKENS, ignore_eos=True, **fields,
        )  # fmt: skip
        turn = await self.sessions.turn(key, request, keep=True)
        _, done = await collect(turn.generation)
        await turn.settled()
        _, line = await self.sessions.peek(key, UNSET)
        ids = line.history.token_ids
        return done.usage, ids[:-NUM_TOKENS], ids[-NUM_TOKENS:]

    async def until(self, condition):
        async with asyncio.timeout(30):
            while not condition():  # noqa: ASYNC110
                await asyncio.sleep(0.005)


@asynccontextmanager
async def living(model, folder, engine="thread", **warm):
    world = World(model, folder, engine, WarmSettings(**warm))
    try:
        await world.open()
        yield world
    finally:
        await world.close()


def num_files(folder):
    return len(list((folder / "kv").iterdir()))


async def test_a_draft_is_run_before_it_is_sent(tiny_llama, tmp_path):
    text = "tell me about the people of this city and what they eat"
    async with living(tiny_llama, tmp_path) as world:
        _, *first = await world.say("hello there")
        draft = None
        for end in range(5, len(text), 7):
            draft = await world.drafts.set(KEY, UNSET, Change(text[:end]))
        draft = await world.drafts.set(KEY, UNSET, Change(append=text[end:]))
        assert draft.text == text
        assert await draft.ready()
        assert draft.num_tokens > len(first[0]) + NUM_TOKENS + 40
        usage, prompt, answer = await world.say(text)
        assert usage.cached_tokens >= draft.num_tokens
        assert usage.prompt_tokens - usage.cached_tokens < 30  # the last word, and what closes it
    assert answer == tiny_llama.golden(prompt, NUM_TOKENS)  # as from nothing


@pytest.mark.parametrize("family", ["llama", "mistral"])
async def test_a_conversation_goes_on_where_it_was_after_a_restart(tiny_models, family, tmp_path):
    model = tiny_models(family)
    async with living(model, tmp_path) as world:
        await world.say("hello there, and good morning to you")
        _, before, said = await world.say("go on")
    assert num_files(tmp_path) == 1
    async with living(model, tmp_path) as world:
        usage, prompt, answer = await world.say("and then?")
        assert world.metrics.kv_restores["hit"] == 1
        assert usage.cached_tokens >= len(before) + len(said) - 1
    assert answer == model.golden(prompt, NUM_TOKENS)


async def test_a_killed_engine_costs_what_was_not_on_disk(tiny_llama, tmp_path):
    async with living(tiny_llama, tmp_path, "child", spill_after_s=0.0) as world:
        _, before, said = await world.say("hello there, and good morning to you")
        await world.until(lambda: world.metrics.kv_saves == 1)
        info = world.handle.info
        os.kill(info.pid, signal.SIGKILL)
        await world.until(lambda: world.handle.info not in (None, info))
        usage, prompt, answer = await world.say("and then?")
        assert usage.cached_tokens >= len(before) + len(said) - 1
    assert answer == tiny_llama.golden(prompt, NUM_TOKENS)


async def test_a_fork_of_an_idle_conversation_is_read_from_its_file(tiny_llama, tmp_path):
    async with living(tiny_llama, tmp_path, spill_after_s=0.0, pin_s=0.0) as world:
        _, before, said = await world.say("hello there, and good morning to you")
        await world.until(lambda: world.metrics.kv_saves == 1 and not world.warmth._warm)
        await world.sessions.fork(KEY, FORK)
        await world.until(lambda: num_files(tmp_path) == 2)
        await world.sessions.delete(KEY)
        await world.until(lambda: num_files(tmp_path) == 1)
        assert (await world.handle.control("clear_cache"))["blocks_freed"]
        usage, prompt, answer = await world.say("and then?", FORK)
        assert usage.cached_tokens >= len(before) + len(said) - 1
    assert answer == tiny_llama.golden(prompt, NUM_TOKENS)


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
async def test_a_damaged_file_costs_time_only(tiny_llama, tmp_path, damage):
    async with living(tiny_llama, tmp_path) as world:
        await world.say("hello there, and good morning to you")
    (path,) = (tmp_path / "kv").iterdir()
    data = bytearray(path.read_bytes())
    if damage == "flipped":
        data[len(data) // 2] ^= 1
    path.write_bytes({"cut": data[:-40], "flipped": data, "empty": b""}[damage])
    async with living(tiny_llama, tmp_path) as world:
        usage, prompt, answer = await world.say("and then?")
        assert usage.cached_tokens == 0
        assert world.metrics.kv_restores["refused"] == 1
        assert num_files(tmp_path) == 0
    assert answer == tiny_llama.golden(prompt, NUM_TOKENS)


async def test_a_session_of_a_salt_is_warm_beside_that_salt_alone(tiny_llama, tmp_path):
    salted = {"cache_salt": "mine"}
    async with living(tiny_llama, tmp_path, spill_after_s=0.0) as world:
        _, prompt, said = await world.say("hello there, and good morning to you", **salted)
        await world.until(lambda: world.metrics.kv_saves == 1)
        assert (await world.handle.control("stats"))["blocks_pinned"] > 0
        draft = await world.drafts.set(KEY, UNSET, Change("tell me about the people of this city"))
        assert await draft.ready()
        assert draft.cached_tokens >= len(prompt)
    async with living(tiny_llama, tmp_path) as world:  # from disk
        usage, *_ = await world.say("and then?", **salted)
        assert usage.cached_tokens >= len(prompt)
        assert (await plain(world, "me", prompt)).cached_tokens == 0
        assert (await plain(world, "me", prompt, "mine")).cached_tokens == len(prompt) - 1


async def test_another_models_file_is_refused(tiny_models, tmp_path):
    async with living(tiny_models("llama"), tmp_path) as world:
        await world.say("hello there, and good morning to you")
    async with living(tiny_models("mistral"), tmp_path) as world:
        usage, prompt, answer = await world.say("and then?")
        assert usage.cached_tokens == 0
        assert world.metrics.kv_restores["refused"] == 1
    assert answer == tiny_models("mistral").golden(prompt, NUM_TOKENS)


async def test_no_key_finds_what_another_ran(tiny_llama, tmp_path):
    text = "tell me about the people of this city and what they eat"
    async with living(tiny_llama, tmp_path, spill_after_s=0.0) as world:
        usage, prompt, said = await world.say(text)
        theirs, *same = await world.say(text, OTHERS)
        assert (usage.cached_tokens, theirs.cached_tokens) == (0, 0)
        assert same == [prompt, said]
        again, *_ = await world.say("and more", OTHERS)
        assert again.cached_tokens >= len(prompt)
    async with living(tiny_llama, tmp_path) as world:  # from disk, each to its own
        theirs, *_ = await world.say("and more still", OTHERS)
        assert theirs.cached_tokens > 0
        usage = await plain(world, "you", prompt)
        assert usage.cached_tokens == len(prompt) - 1
        assert (await plain(world, "me", prompt)).cached_tokens == 0
        assert (await plain(world, "you", prompt, "salt")).cached_tokens == 0
        assert (await plain(world, "you", prompt, "salt")).cached_tokens == len(prompt) - 1
        assert (await plain(world, "me", prompt, "salt")).cached_tokens == 0
        assert (await world.handle.control("check"))["held"] == 0


async def plain(world, owner, prompt, cache_salt=""):
    request = GenerateRequest(token_ids=prompt, max_tokens=1, owner=owner, cache_salt=cache_salt)
    _, done = await collect(await world.service.generate(request))
    return done.usage
