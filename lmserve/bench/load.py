"""Runs a workload: users who each wait for their answer, or requests that begin at a rate."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import islice

import aiohttp

from lmserve.bench.client import Answer, Client, Prompt
from lmserve.bench.prompts import measure, prompts
from lmserve.bench.workload import Workload


@dataclass(frozen=True, slots=True)
class Limits:
    warmup: int = 1  # requests before the clock starts
    duration_s: float = 120.0  # no request begins after this
    timeout_s: float = 120.0  # of one request


@dataclass(frozen=True, slots=True)
class Run:
    answers: list[Answer]
    wall_s: float


@asynccontextmanager
async def http(limits: Limits, api_key: str = "") -> AsyncIterator[aiohttp.ClientSession]:
    """A connection a request: some servers close kept ones without a word."""
    headers = {"Content-Type": "application/json"}
    if api_key:
        headers["Authorization"] = f"Bearer {api_key}"
    async with aiohttp.ClientSession(
        headers=headers,
        timeout=aiohttp.ClientTimeout(total=limits.timeout_s, sock_connect=30),
        connector=aiohttp.TCPConnector(limit=0, force_close=True),
    ) as session:
        yield session


async def prepare(client: Client, work: Workload, limits: Limits, seed: str) -> list[Prompt]:
    """Sizes the prompts and warms the server up; gives the prompts of the run."""
    sizes = await measure(client, work, seed)
    endless = prompts(work, sizes, seed)
    for prompt in islice(endless, limits.warmup):
        await client.ask(prompt, work.max_tokens)
    return list(islice(endless, work.num_requests))


async def run(
    client: Client, work: Workload, asked: list[Prompt], limits: Limits, seed: str
) -> Run:
    answers: list[Answer] = []
    began = time.perf_counter()
    waiting = _until(iter(asked), began + limits.duration_s)

    async def ask(prompt: Prompt) -> None:
        answers.append(await client.ask(prompt, work.max_tokens))

    async def user() -> None:
        for prompt in waiting:
            await ask(prompt)

    async with asyncio.TaskGroup() as tasks:
        if work.rate:
            rng = random.Random(f"{seed}/arrivals")
            async for prompt in _arriving(waiting, work.rate, rng):
                tasks.create_task(ask(prompt))
        else:
            for _ in range(work.users):
                tasks.create_task(user())
    return Run(answers, time.perf_counter() - began)


def _until(asked: Iterator[Prompt], deadline: float) -> Iterator[Prompt]:
    for prompt in asked:
        if time.perf_counter() > deadline:
            return
        yield prompt


async def _arriving(
    asked: Iterator[Prompt], rate: float, rng: random.Random
) -> AsyncIterator[Prompt]:
    """As a Poisson process: the times between two are exponential, whatever became of the first."""
    due = time.perf_counter()
    for prompt in asked:
        await asyncio.sleep(due - time.perf_counter())
        yield prompt
        due += rng.expovariate(rate)
