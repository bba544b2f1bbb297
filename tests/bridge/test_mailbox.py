"""The mailbox merges, ends once, and loses nothing to a cancelled reader."""

from __future__ import annotations

import asyncio

import pytest

from lmserve.bridge.mailbox import Mailbox
from lmserve.messages import SequenceOutput, pack_ids


def said(
    *ids: int, cached: int = 0, finish: str | None = None, queue_s: float | None = None
) -> SequenceOutput:
    return SequenceOutput(1, pack_ids(ids), cached, finish, queue_s=queue_s)


async def test_steps_merge_until_read() -> None:
    mailbox = Mailbox(1)
    mailbox.put(said(1, cached=8, queue_s=0.5))
    mailbox.put(said(2, 3))
    delivery = await mailbox.get()
    assert (delivery.token_ids, delivery.finish) == ([1, 2, 3], None)
    assert (delivery.num_cached_tokens, delivery.queue_s) == (8, 0.5)
    mailbox.put(said(4, finish="length"))
    delivery = await mailbox.get()
    assert (delivery.token_ids, delivery.finish, delivery.num_cached_tokens) == ([4], "length", 8)
    assert delivery.queue_s == 0.5


async def test_what_its_second_engine_found_counts() -> None:
    mailbox = Mailbox(1)
    mailbox.put(said(cached=100, queue_s=0.5))  # it died before there was a token
    mailbox.put(said(1, cached=0, queue_s=0.1))
    delivery = await mailbox.get()
    assert (delivery.num_cached_tokens, delivery.queue_s) == (0, 0.1)


async def test_nothing_comes_after_the_end() -> None:
    mailbox = Mailbox(1)
    mailbox.end("error", "gone", died=True)
    mailbox.end("abort")
    mailbox.put(said(1))
    delivery = await mailbox.get()
    assert (delivery.token_ids, delivery.finish, delivery.error, delivery.died) == (
        [],
        "error",
        "gone",
        True,
    )


async def test_a_cancelled_reader_loses_nothing() -> None:
    mailbox = Mailbox(1)
    reader = asyncio.create_task(mailbox.get())
    await asyncio.sleep(0)
    mailbox.put(said(1))  # wakes the reader, which is cancelled before it runs
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    assert (await mailbox.get()).token_ids == [1]
