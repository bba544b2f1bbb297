"""A service over the fake engine."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from lmserve.bridge.fake import FakeEngine
from lmserve.service.generate import Service
from lmserve.service.metrics import Metrics
from lmserve.settings import ServerSettings, Settings


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
