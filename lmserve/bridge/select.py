"""Which engine the settings ask for. Imports lazily: the server loads only what it uses."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lmserve.bridge.handle import EngineHandle
    from lmserve.settings import EngineSettings


def make_handle(settings: EngineSettings) -> EngineHandle:
    """The engine, not started yet. Called on the event loop it will be used on."""
    match settings.engine:
        case "child":
            from lmserve.bridge.child import ChildEngine

            return ChildEngine(settings)
        case "thread":
            from lmserve.bridge.thread import ThreadEngine

            return ThreadEngine(settings)
        case "mock":
            from lmserve.bridge.fake import FakeEngine

            return FakeEngine(settings, record=False)
