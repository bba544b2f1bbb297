"""Answers that are worth nothing after a while (`deadline_s`, from the request's arrival)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TypeVar

from lmserve.errors import DeadlineExceeded, Overloaded
from lmserve.service import limits
from lmserve.service.waiting import Waiting, retry_after_s
from lmserve.types import GenerateRequest

T = TypeVar("T")

_PARAM = "deadline_s"
_PASSED_S = 1e-9  # nothing begins in so little time


def missed(retry_s: int) -> DeadlineExceeded:
    """It passed before the first token."""
    return DeadlineExceeded(
        "the answer had not begun by its deadline_s: allow more time, or ask again later",
        param=_PARAM,
        retry_after_s=retry_s,
    )


def seconds_left(request: GenerateRequest, passed_s: float, waiting: Waiting) -> float | None:
    """Of its deadline, if it has one. Raises DeadlineExceeded where the answer cannot even begin
    in that time, as far as is known."""
    if request.deadline_s is None:
        return None
    left_s = request.deadline_s - passed_s
    if left_s <= 0:
        raise missed(waiting.retry_after_s())
    estimate_s = waiting.estimate_s(request.priority, request.owner)
    if estimate_s is not None and estimate_s > left_s:
        raise DeadlineExceeded(
            f"the answer would begin in about {estimate_s:.1f} s, after its deadline_s: allow more "
            "time, or ask again later",
            param=_PARAM,
            retry_after_s=retry_after_s(estimate_s - left_s),
        )
    return left_s


def check_wait(request: GenerateRequest, max_queue_s: float | None, waiting: Waiting) -> None:
    """Raises Overloaded where a request would wait for its first step for longer, as far as is
    known: it is refused while it has cost nothing."""
    if max_queue_s is None:
        return
    estimate_s = waiting.estimate_s(request.priority, request.owner)
    if estimate_s is not None and estimate_s > max_queue_s:
        raise Overloaded(
            f"the answer would begin in about {estimate_s:.1f} s, and the server lets nobody wait "
            f"for more than {max_queue_s:g} s (max_queue_s): try again in a moment",
            retry_after_s=retry_after_s(estimate_s - max_queue_s),
        )


async def in_time(
    request: GenerateRequest, wait: Callable[[], Awaitable[T]], clock: Callable[[], float]
) -> tuple[T, GenerateRequest]:
    """Waits for something before the request can be made, within its deadline. Returns the
    request with what is left of that. Raises DeadlineExceeded."""
    if request.deadline_s is None:
        return await wait(), request
    limits.check_turn(request)
    began_s = clock()
    try:
        async with asyncio.timeout(request.deadline_s):
            result = await wait()
    except TimeoutError:
        raise missed(1) from None
    left_s = request.deadline_s - (clock() - began_s)
    return result, replace(request, deadline_s=max(left_s, _PASSED_S))
