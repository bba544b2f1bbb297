"""Whatever readers, aborts, failures and stops do to each other, each request ends once."""

from __future__ import annotations

import asyncio
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from lmserve.bridge.fake import FakeEngine
from lmserve.errors import EngineError
from lmserve.service.generate import Service, collect
from lmserve.service.metrics import Metrics
from lmserve.settings import ServerSettings, Settings
from lmserve.types import GenerateRequest

texts = st.text("abX", max_size=4)
kinds = st.sampled_from(["say", "fail", "hang", "stop"])
scripts = st.lists(
    st.tuples(kinds, st.lists(texts, max_size=4), st.none() | st.integers(0, 8)),
    min_size=1,
    max_size=8,
)


def script(engine: FakeEngine, kind: str, pieces: list[str]) -> None:
    match kind:
        case "say":
            engine.will_say(*pieces)
        case "fail":
            engine.will_fail("bad luck", *pieces)
        case _:
            engine.will_hang(*pieces, *(["END"] if kind == "stop" else []))


async def one(service: Service) -> str:
    try:
        _, done = await collect(await service.generate(GenerateRequest(text="a", stop=("END",))))
    except EngineError:
        return "error"
    return done.finish_reason


async def run(cases: list[tuple[str, list[str], int | None]], drain: bool) -> None:
    settings = Settings(server=ServerSettings(model_name="fake"))
    engine = FakeEngine()
    await engine.start()
    metrics = Metrics(engine, settings)
    service = Service(engine, settings, metrics)
    await service.prepare()
    tasks = []
    for kind, pieces, _ in cases:
        script(engine, kind, pieces)
        tasks.append(asyncio.create_task(one(service)))
        await asyncio.sleep(0)  # so that scripts and requests pair up
    for turn in range(10):
        for task, (_, _, cancelled_at) in zip(tasks, cases, strict=True):
            if cancelled_at == turn:
                task.cancel()
        await asyncio.sleep(0)
    if drain:
        await service.drain(0)
    else:
        for task in tasks:
            task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert service.inflight == 0
    assert not service._generations
    told = Counter("abort" if isinstance(r, asyncio.CancelledError) else r for r in results)
    submitted = len(engine.submits)
    assert sum(metrics.finished.values()) == submitted
    for reason in ("stop", "error"):
        assert metrics.finished[reason] >= told[reason]
    assert len(set(engine.aborts)) == len(engine.aborts)
    # whatever did not come to its own end in the engine was ended there
    assert engine.stats.num_running == 0
    service.close()
    await engine.close()


@given(cases=scripts, drain=st.booleans())
def test_each_request_ends_once(
    cases: list[tuple[str, list[str], int | None]], drain: bool
) -> None:
    asyncio.run(run(cases, drain))
