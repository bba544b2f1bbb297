"""Telling a distributor (`lmserve serve proxy`) that this server is one of its nodes.

While the engine is well: added, and added again every so often, which is the heart-beat. While it
is not, and before the server stops listening: removed, so that nothing new is sent here. A
distributor that cannot be reached is tried again and never ends the server.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

from aiohttp import ClientError, ClientSession, ClientTimeout

from lmserve.bridge.handle import EngineHandle
from lmserve.service.generate import Service
from lmserve.settings import ServerSettings

BEAT_S = 10.0
RETRY_S = 1.0  # after the first failure, then twice as long each time, up to:
MAX_RETRY_S = 30.0
TIMEOUT_S = 5.0
LEAVE_TIMEOUT_S = 2.0  # at shutdown

logger = logging.getLogger(__name__)


@asynccontextmanager
async def registered(
    settings: ServerSettings,
    node_url: str,
    handle: EngineHandle,
    service: Service,
    api_key: str | None,
) -> AsyncIterator[None]:
    """Kept registered while this is open; removed when it is left."""
    if settings.proxy_url is None:
        yield
        return
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else None
    async with ClientSession(headers=headers, timeout=ClientTimeout(total=TIMEOUT_S)) as session:
        registration = Registration(session, settings.proxy_url, node_url, handle, service)
        keeping = asyncio.create_task(registration.keep())
        try:
            yield
        finally:
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)
            await registration.leave()


class Registration:
    """One node's entry in one distributor's list."""

    def __init__(
        self,
        session: ClientSession,
        proxy_url: str,
        node_url: str,
        handle: EngineHandle,
        service: Service,
    ):
        self._session = session
        self._proxy_url = proxy_url.rstrip("/")
        self._node_url = node_url
        self._handle = handle
        self._service = service
        self._may_be_known = False  # an add was sent, and no remove answered since
        self._failures = 0  # in a row
        self._logged = ""

    async def keep(self) -> None:
        """Tells the distributor how this node is, again and again."""
        if _is_loopback(self._node_url) and not _is_loopback(self._proxy_url):
            logger.warning(
                "%s is not reached from other machines: give --server-name or --advertise-url",
                self._node_url,
            )
        while True:
            changed = asyncio.create_task(self._handle.changed())
            try:
                await asyncio.sleep(0)  # it watches from before the look: no change is missed
                await asyncio.wait({changed}, timeout=await self._tell())
            finally:
                changed.cancel()

    async def leave(self) -> None:
        """At shutdown: nothing new should be sent here."""
        if not self._may_be_known:
            return
        try:
            async with asyncio.timeout(LEAVE_TIMEOUT_S):
                problem = await self._remove()
        except TimeoutError:
            problem = "it did not answer"
        if problem:
            logger.warning("%s was not told that this node leaves: %s", self._proxy_url, problem)

    async def _tell(self) -> float:
        """Gives how many seconds may pass until the next time."""
        if self._handle.health().ok:
            problem, state = await self._add(), "registered with"
        elif self._may_be_known:
            problem, state = await self._remove(), "not ready, removed from"
        else:
            return BEAT_S
        if problem is None:
            self._failures = 0
            self._log(logging.INFO, state)
            return BEAT_S
        self._log(logging.WARNING, "cannot be registered with", f": {problem}; trying again")
        self._failures += 1
        return min(RETRY_S * 2.0 ** min(self._failures - 1, 10), MAX_RETRY_S)

    def _log(self, level: int, state: str, detail: str = "") -> None:
        """One line a change of state."""
        if state != self._logged:
            self._logged = state
            logger.log(level, "%s %s %s%s", self._node_url, state, self._proxy_url, detail)

    async def _add(self) -> str | None:
        self._may_be_known = True
        models = [model.name for model in self._service.catalog.models(self._handle.info)]
        status = {
            "models": models,
            "unfinished": self._service.inflight,
            "latency": [],
            "speed": None,
        }
        return await self._post("add", {"url": self._node_url, "status": status})

    async def _remove(self) -> str | None:
        problem = await self._post("remove", {"url": self._node_url})
        self._may_be_known = problem is not None
        return problem

    async def _post(self, verb: str, body: dict[str, Any]) -> str | None:
        """What went wrong, if anything."""
        url = f"{self._proxy_url}/nodes/{verb}"
        try:
            async with self._session.post(url, json=body, allow_redirects=False) as response:
                status = response.status
        except TimeoutError:
            return f"no answer within {TIMEOUT_S:.0f} s"
        except (ClientError, OSError) as error:
            return str(error) or type(error).__name__
        if status in (401, 403):
            return (
                "it asks for another API key: the first of --admin-keys, or else of --api-keys, "
                "must be one of its own"
            )
        if status == 200 or (status == 404 and verb == "remove"):
            return None
        return f"it answered {status}"


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
