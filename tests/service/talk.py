"""What the tests of sessions say, and how they look at what is kept."""

from __future__ import annotations

import asyncio
from typing import Any

from lmserve.bridge.fake import FakeEngine
from lmserve.messages import unpack_ids
from lmserve.service.generate import Service, collect
from lmserve.service.sessions.sessions import SessionKey, Sessions, Turn
from lmserve.service.store.store import Line
from lmserve.types import GenerateRequest

KEY = SessionKey("", "7")
OTHER = SessionKey("", "8")


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def ask(*texts: str, **fields: Any) -> GenerateRequest:
    return GenerateRequest(messages=[user(text) for text in texts], **fields)


async def say(
    sessions: Sessions, request: GenerateRequest, key: SessionKey = KEY, *, keep: bool = True
) -> tuple[str, Turn]:
    turn = await sessions.turn(key, request, keep=keep)
    text, _ = await collect(turn.generation)
    await turn.settled()
    return text, turn


async def held(sessions: Sessions, key: SessionKey = KEY) -> Line:
    text = await sessions._service.model_text()
    return await sessions.keeper.run(lambda store: store.load(key, text.text_key))


async def contents(sessions: Sessions, key: SessionKey = KEY) -> list[str]:
    return [message["content"] for message in (await held(sessions, key)).messages]


async def prompts(engine: FakeEngine, service: Service) -> list[str]:
    tokenizer = (await service.model_text()).tokenizer
    return [
        tokenizer.decode(unpack_ids(submit.token_ids), skip_special=False)
        for submit in engine.submits
    ]


def chatml(*turns: str) -> str:
    """Questions and answers in turn."""
    parts = [
        f"<|im_start|>{('user', 'assistant')[index % 2]}\n{turn}<|im_end|>\n"
        for index, turn in enumerate(turns)
    ]
    return "".join(parts) + "<|im_start|>assistant\n"


async def waiting(sessions: Sessions, num: int, key: SessionKey = KEY) -> None:
    """Until so many calls wait for the session."""
    async with asyncio.timeout(10):
        while len(sessions.turns._waiters.get(key, ())) != num:  # noqa: ASYNC110
            await asyncio.sleep(0)
