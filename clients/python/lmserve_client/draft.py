"""What is being typed, told to the server, which runs it ahead: the answer begins sooner."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress

from lmserve_client.errors import APIError
from lmserve_client.link import Link
from lmserve_client.objects import Prefilled
from lmserve_client.types import JSONObject
from lmserve_client.verbs import DRAFT

DEBOUNCE_S = 0.15

_logger = logging.getLogger("lmserve_client")


class Draft:
    """Of one session. It is a help and no more: where it cannot be told, nothing is lost, and
    nothing is raised."""

    def __init__(self, link: Link, session: str, debounce_s: float = DEBOUNCE_S):
        self.session = session
        self.prefilled: Prefilled | None = None  # as it was told last
        self._link = link
        self._debounce_s = debounce_s
        self._text = ""
        self._sent: str | None = ""  # what the server has; None: nobody knows
        self._task: asyncio.Task[None] | None = None

    def set(self, text: str) -> None:
        """What stands in the input by now. Call it at each key: the server is told of what has
        changed, and not of every letter."""
        self._text = text
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._tell())

    async def flush(self) -> None:
        """Returns when the server knows the text."""
        while self._task is not None and not self._task.done():
            with suppress(asyncio.CancelledError):
                await asyncio.shield(self._task)

    def clear(self) -> None:
        """It was sent: the server forgets it, too."""
        self._text = self._sent = ""

    async def aclose(self) -> None:
        """The text was sent, or will not be."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def on_ready(self, item: JSONObject) -> None:
        self.prefilled = Prefilled(item.get("num_tokens", 0), item.get("cached_tokens", 0))

    async def _tell(self) -> None:
        while self._text != self._sent:
            await asyncio.sleep(self._debounce_s)
            text = self._text
            try:
                change = _change(self._sent, text)
                told = await self._link.call(DRAFT, {"session": self.session, **change})
                # after a turn, or a while, the server begins it anew
                known = "text" in change or told.get("num_chars") == len(text)
                self._sent = text if known else None
            except APIError as error:
                self._sent = None
                _logger.debug("the draft of %s was not told: %s", self.session, error)
                return


def _change(sent: str | None, text: str) -> JSONObject:
    """What makes the one text of the other. Small, where most of it stays."""
    if sent is None:
        return {"text": text}
    kept = 0
    for one, other in zip(sent, text):
        if one != other:
            break
        kept += 1
    cut: JSONObject = {"truncate": kept} if kept < len(sent) else {}
    return cut if kept == len(text) else {**cut, "append": text[kept:]}
