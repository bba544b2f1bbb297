"""Files that are read again while the server runs: when they change, and on SIGHUP."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from aiohttp import web

from lmserve.errors import SetupError

INTERVAL_S = 0.5  # between two looks

Stamp = tuple[tuple[int, int, int] | None, ...]

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Source:
    what: str
    paths: tuple[str, ...]
    read: Callable[[], None]
    seen: Stamp = field(default=())  # at the last look
    tried: Stamp = field(default=())  # when it was last read

    def look(self, *, anyway: bool) -> None:
        """Reads it where it changed and is at rest: of two files, one is replaced first."""
        now = _stamp(self.paths)
        at_rest, self.seen = now == self.seen, now
        if not anyway and (now == self.tried or not at_rest):
            return
        self.tried = now
        try:
            self.read()
        except SetupError as error:
            logger.error("%s: what was read before stays: %s", self.what, error.message)
        else:
            logger.info("%s: read again", self.what)

    def begin(self) -> None:
        self.seen = self.tried = _stamp(self.paths)
        self.read()


class Reloads:
    """What is read again, and what is done after each look. Everything that touches a disk runs
    in a thread."""

    def __init__(self) -> None:
        self._sources: list[_Source] = []
        self._asked = asyncio.Event()
        self.after: list[Callable[[], None]] = []  # on the loop

    def add(self, what: str, paths: Iterable[str], read: Callable[[], None]) -> None:
        """`read` raises SetupError where the files are wrong, and then changes nothing."""
        self._sources.append(_Source(what, tuple(paths), read))

    def now(self) -> None:
        """Has everything read again, changed or not."""
        self._asked.set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """All is read once, on entry. Raises SetupError."""
        await asyncio.to_thread(self._begin)
        watching = asyncio.create_task(self._watch())
        try:
            yield
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)

    def _begin(self) -> None:
        for source in self._sources:
            source.begin()

    async def _watch(self) -> None:
        while self._sources:
            with suppress(TimeoutError):
                async with asyncio.timeout(INTERVAL_S):
                    await self._asked.wait()
            anyway = self._asked.is_set()
            self._asked.clear()
            try:
                await asyncio.to_thread(self._look, anyway)
                for each in self.after:
                    each()
            except Exception:  # nothing may end it: a key that is taken away must stop working
                logger.exception("the files cannot be looked at")

    def _look(self, anyway: bool) -> None:
        for source in self._sources:
            source.look(anyway=anyway)


RELOADS = web.AppKey("reloads", Reloads)


def _stamp(paths: Iterable[str]) -> Stamp:
    return tuple(map(_stamp_of, paths))


def _stamp_of(path: str) -> tuple[int, int, int] | None:
    try:
        seen = os.stat(path)
    except OSError:
        return None
    return (seen.st_mtime_ns, seen.st_ino, seen.st_size)
