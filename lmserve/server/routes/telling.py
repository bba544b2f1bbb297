"""What chat and completions have in common in telling their choices."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing

from lmserve.protocol.encode import DONE
from lmserve.protocol.openai.plain import Extras
from lmserve.protocol.openai.teller import Teller
from lmserve.server import sse
from lmserve.server.routes.merge import merge
from lmserve.service.generate import Generation, read
from lmserve.types import Done, TextDelta, Usage

EncodeUsage = Callable[[Sequence[Usage]], bytes]  # b"" where it is not asked for


async def chunks(
    generations: Sequence[Generation],
    tell: Callable[[int, TextDelta], bytes],
    end: Callable[[int, Done], bytes],
    usage: EncodeUsage,
) -> AsyncGenerator[bytes, None]:
    """Chunks of all choices as they come; the last of all also ends the stream."""
    usages: dict[int, Usage] = {}
    async with aclosing(merge([generation.events() for generation in generations])) as events:
        async for index, event in events:
            if isinstance(event, TextDelta):
                if chunk := tell(index, event):
                    yield chunk
                continue
            usages[index] = event.usage
            last = b""
            if len(usages) == len(generations):
                last = usage([usages[index] for index in sorted(usages)]) + DONE
            yield end(index, event) + last


async def whole(generations: Sequence[Generation], tellers: Sequence[Teller]) -> list[Done]:
    """Reads all choices side by side, so that each ends as soon as it may."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(read(generation, teller.add))
                for generation, teller in zip(generations, tellers, strict=True)
            ]
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]


async def encoded(extras: Extras, encode: Callable[[], bytes]) -> bytes:
    """What `encode` gives. Log probabilities, of many tokens and choices, take it seconds: off the
    loop."""
    if extras.logprobs or extras.prompt_logprobs:
        return await asyncio.to_thread(encode)
    return encode()


def follow_one(
    generations: Sequence[Generation], tell: Callable[[int, TextDelta], bytes]
) -> sse.Follow | None:
    """None where there are several: they take turns."""
    if len(generations) > 1:
        return None
    (generation,) = generations

    async def follow(write: Callable[[bytes], bool]) -> None:
        def show(delta: TextDelta) -> bool:
            chunk = tell(0, delta)
            return not chunk or write(chunk)

        await generation.follow(show)

    return follow


def tell_richly(tellers: Sequence[Teller]) -> Callable[[int, TextDelta], bytes]:
    return lambda index, delta: tellers[index].delta(delta)


def end_richly(tellers: Sequence[Teller]) -> Callable[[int, Done], bytes]:
    return lambda index, done: tellers[index].final(done)
