"""A service over the fake engine."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from lmserve.bridge.fake import FakeEngine
from lmserve.service.exposition.exposition import Exposition
from lmserve.service.generate import Service
from lmserve.service.metrics import Metrics
from lmserve.service.sessions.sessions import Sessions
from lmserve.settings import ServerSettings, SessionSettings, Settings
from tests.service.plain import Place, opened


class Clock:
    """Time that passes only when told."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
async def engine() -> AsyncIterator[FakeEngine]:
    fake = FakeEngine()
    await fake.start()
    yield fake
    await fake.close()


@pytest.fixture
def settings() -> Settings:
    return Settings(server=ServerSettings(model_name="fake"))


@pytest.fixture
def metrics(engine: FakeEngine, settings: Settings) -> Metrics:
    return Metrics(engine, settings)


@pytest.fixture
def exposition(metrics: Metrics, engine: FakeEngine, settings: Settings) -> Exposition:
    return Exposition(metrics, engine, settings)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def service(
    engine: FakeEngine, settings: Settings, metrics: Metrics, clock: Clock
) -> AsyncIterator[Service]:
    service = Service(engine, settings, metrics, clock=clock)
    yield service
    service.close()
    assert service.inflight == 0, "a request was not accounted for"


class Wall:
    """Time of day that passes only when told."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def options(tmp_path: Path) -> SessionSettings:
    return SessionSettings(data_dir=str(tmp_path / "data"), session_ttl_s=100.0)


@pytest.fixture
def wall() -> Wall:
    return Wall()


@pytest.fixture
async def sessions(
    service: Service, options: SessionSettings, wall: Wall
) -> AsyncIterator[Sessions]:
    sessions = Sessions(service, options, clock=wall)
    await sessions.open()
    yield sessions
    service.close()
    await sessions.close()
    assert not sessions.turns.busy, "a session's turn was not given back"


@pytest.fixture
async def place(engine: FakeEngine, tmp_path: Path) -> AsyncIterator[Place]:
    async with opened(Place(tmp_path / "data", engine)) as place:
        yield place
