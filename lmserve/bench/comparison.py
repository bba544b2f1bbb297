"""Several servers in turn, in one run: each starts, alone, runs the workloads and ends.

The order is turned each round, so that what changes on the machine with time falls on all alike.
A run that other work disturbed is made again, with new prompts, a bounded number of times.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace

import aiohttp

from lmserve.bench.client import Manner
from lmserve.bench.load import Limits, http, prepare, run
from lmserve.bench.machine import LoadMeter, describe
from lmserve.bench.processes import pss_mib
from lmserve.bench.records import Begun, Lived, Measured, Record
from lmserve.bench.servers import Live, Server, running
from lmserve.bench.summary import summary
from lmserve.bench.workload import Workload
from lmserve.errors import SetupError

QUIET_LOOK_S = 1.0  # for so long nothing else may run before a start or run


@dataclass(frozen=True, slots=True)
class Plan:
    servers: Sequence[Server]
    workloads: Sequence[Workload]  # none: servers start, answer once and end
    rounds: int
    seed: str
    limits: Limits = field(default_factory=Limits)
    slo: dict[str, float] = field(default_factory=dict)
    repeats: int = 2  # of a disturbed run, at most
    quiet_wait_s: float = 30.0  # for a quiet machine before a start or run, at most
    keep: bool = False  # start each server once, and leave it idle while others are measured
    start_limit_s: float = 300.0
    manner: Manner = field(default_factory=Manner)
    api_key: str = ""


async def compare(plan: Plan, note: Callable[[Record], None]) -> None:
    servers = {server.name: server.command or server.url for server in plan.servers}
    note(Begun(machine=describe(), servers=servers, seed=plan.seed))
    async with http(plan.limits, plan.api_key) as session, _Fleet(plan, session) as fleet:
        for number in range(plan.rounds):
            for server in plan.servers if number % 2 == 0 else plan.servers[::-1]:
                note(await _one_life(plan, fleet, server, number, note))


class _Fleet:
    """The servers, those that are kept started once."""

    def __init__(self, plan: Plan, session: aiohttp.ClientSession):
        self._plan = plan
        self._session = session
        self._kept: dict[str, Live] = {}
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> _Fleet:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    @asynccontextmanager
    async def live(self, server: Server) -> AsyncIterator[Live]:
        plan = self._plan
        if server.name in self._kept:
            yield self._kept[server.name]
            return
        if server.command:
            await _quiet([], plan.quiet_wait_s)
        made = running(server, self._session, plan.manner, plan.start_limit_s)
        if plan.keep:
            live = await self._stack.enter_async_context(made)
            self._kept[server.name] = replace(live, start_s=None, start_load=None)  # told once
            yield live
        else:
            async with made as live:
                yield live


async def _one_life(
    plan: Plan, fleet: _Fleet, server: Server, number: int, note: Callable[[Record], None]
) -> Lived:
    """A server that fails does not end the comparison: the others are measured on."""
    lived = Lived(server.name, number)
    try:
        async with fleet.live(server) as live:
            lived.start_s, lived.start_load = live.start_s, live.start_load
            for work in plan.workloads:
                await _until_undisturbed(plan, live, work, number, note)
            if live.pid is not None:
                lived.pss_mib = await asyncio.to_thread(pss_mib, live.pid)
    except SetupError as error:
        lived.error = error.message
    return lived


async def _until_undisturbed(
    plan: Plan, live: Live, work: Workload, number: int, note: Callable[[Record], None]
) -> None:
    for attempt in range(plan.repeats + 1):
        measured = await _measure(plan, live, work, number, attempt)
        note(measured)
        if not measured.load.is_disturbed:
            return


async def _measure(plan: Plan, live: Live, work: Workload, number: int, attempt: int) -> Measured:
    seed = f"{plan.seed}/{number}/{attempt}"  # the same for all servers, never the same again
    asked = await prepare(live.client, work, plan.limits, seed)
    others = [live.pid] if live.pid is not None else []
    await _quiet(others, plan.quiet_wait_s)
    meter, own = LoadMeter(others), time.process_time()
    made = await run(live.client, work, asked, plan.limits, seed)
    own = time.process_time() - own
    return Measured(
        server=live.name,
        round=number,
        workload=work,
        attempt=attempt,
        load=meter.read(),
        client_cores=own / made.wall_s,
        figures=summary(made, plan.slo),
    )


async def _quiet(others: list[int], at_most_s: float) -> None:
    """Until nobody else uses the machine."""
    deadline = time.perf_counter() + at_most_s
    while time.perf_counter() < deadline:
        meter = LoadMeter(others)
        await asyncio.sleep(QUIET_LOOK_S)
        if not meter.read().is_disturbed:
            return
