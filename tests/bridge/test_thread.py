"""What a thread does in its own way: it dies of an exception, and says which."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

import pytest

from lmserve.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.bridge.conftest import Bench


async def test_an_escaped_exception_is_told_and_survived(
    make_bench: Callable[..., Bench], caplog: pytest.LogCaptureFixture
) -> None:
    bench = make_bench("thread")
    await bench.engine.start()
    await bench.engine.wait_ready()
    with caplog.at_level(logging.ERROR):
        _, last = await bench.read(bench.ask(bench.RAISES))
        assert last.died
        assert "engine thread died" in (last.error or "")
        await bench.engine.wait_ready()
    assert "the engine thread died: RuntimeError: boom" in caplog.text
    assert (await bench.read(bench.ask(3, max_tokens=2)))[0] == [3, 4]


async def test_a_failed_load_is_one_line(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench("thread", model="missing")
    await bench.engine.start()
    with pytest.raises(ModelError, match="name one that is"):
        await bench.engine.wait_ready()


async def test_close_leaves_no_thread(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench("thread")
    await bench.engine.start()
    await bench.engine.wait_ready()
    await bench.engine.close()
    assert "engine" not in {thread.name for thread in threading.enumerate()}
