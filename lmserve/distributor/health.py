"""Whether the nodes live: each is asked now and then, and at once when a request fails there."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress

import msgspec
from aiohttp import ClientError, ClientResponse, ClientSession, ClientTimeout

from lmserve.distributor.errors import NodeUnavailable
from lmserve.distributor.nodes import Node, Nodes
from lmserve.distributor.settings import ProxySettings
from lmserve.ids import is_node_id

logger = logging.getLogger(__name__)

UNREACHABLE = (ClientError, TimeoutError, OSError)
MAX_BYTES = 2**20  # of what a node says of itself


class Watch:
    """One task a node, from `follow` until the node is removed or this is closed."""

    def __init__(self, nodes: Nodes, session: ClientSession, settings: ProxySettings):
        self._nodes = nodes
        self._session = session
        self._settings = settings
        self.timeout = ClientTimeout(total=settings.health_timeout_s)
        self._tasks: set[asyncio.Task[None]] = set()
        self._told: set[str | None] = set()  # ids that two nodes have

    def follow(self, node: Node) -> None:
        task = asyncio.create_task(self._watch(node), name=f"watch {node.url}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _watch(self, node: Node) -> None:
        while node in self._nodes or node.unfinished:  # removed: what runs there may finish
            node.doubted.clear()
            await self.check(node)
            if time.monotonic() - node.seen_s > self._settings.forget_after_s:
                self._forget(node)
            with suppress(TimeoutError):
                async with asyncio.timeout(self._settings.health_interval_s):
                    await node.doubted.wait()

    def _forget(self, node: Node) -> None:
        if not node.configured and node in self._nodes:
            logger.warning("%s is dropped: it was not heard of for too long", node.url)
            self._nodes.remove(node)
            node.cut()

    async def check(self, node: Node) -> None:
        """Asks for its health, and for its models where they are not known."""
        try:
            problem = await self._health(node)
            # what it serves may change while it is away
            if problem is None and not (node.alive or node.told):
                node.models = await self.models(node.url)
        except NodeUnavailable as error:
            node.down(error.message)
        except UNREACHABLE as error:
            node.down(_words(error))
            if time.monotonic() - node.seen_s > self._settings.cut_after_s:
                node.cut()
        else:
            node.seen()
            if problem is None:
                node.up()
                self._compare(node)
            else:
                node.down(problem)

    async def _health(self, node: Node) -> str | None:
        """Why it should get no requests."""
        async with self._session.get(node.url + "/health", timeout=self.timeout) as response:
            if response.status == 404:  # it is older than the route
                self._named(node, None)
                return None
            if response.status != 200:
                return f"its /health says {response.status}"
            health = _health_of(await _whole(response))
        self._named(node, health.node_id)
        return "it was put to sleep" if health.status == "sleeping" else None

    def _named(self, node: Node, id: str | None) -> None:
        node.id, node.asked = (id if id and is_node_id(id) else None), True

    def _compare(self, node: Node) -> None:
        """One id for two nodes is told, once."""
        alike = [other for other in self._nodes.named(node.id or "") if other.alive]
        if len(alike) > 1 and node.id not in self._told:
            self._told.add(node.id)
            logger.warning(
                "%s have the same node_id: give each a --data-dir of its own, and delete the file "
                "node_id from those that were copied",
                " and ".join(other.url for other in alike),
            )

    async def models(self, url: str) -> tuple[str, ...]:
        """What it serves, by its own account."""
        try:
            async with self._session.get(
                url + "/v1/models", timeout=self.timeout, headers=self.headers
            ) as response:
                if response.status != 200:
                    raise NodeUnavailable(f"{url}/v1/models says {response.status}", param="url")
                listed = msgspec.json.decode(await _whole(response), type=_Listed)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise NodeUnavailable(f"{url}/v1/models lists no models", param="url") from None
        except UNREACHABLE as error:
            raise NodeUnavailable(f"{url} does not answer: {_words(error)}", param="url") from None
        return tuple(dict.fromkeys(model.id for model in listed.data))

    @property
    def headers(self) -> dict[str, str]:
        """Nodes are expected to know the first of the keys."""
        return _showing(*self._settings.api_keys, *self._settings.admin_keys)

    @property
    def admin_headers(self) -> dict[str, str]:
        """As `headers`, where a node is to do what its administrators may have it do."""
        return _showing(*self._settings.admin_keys, *self._settings.api_keys)


def _showing(*keys: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {keys[0]}"} if keys else {}


class _Health(msgspec.Struct):
    status: str | None = None
    node_id: str | None = None


class _Model(msgspec.Struct):
    id: str


class _Listed(msgspec.Struct):
    data: list[_Model]


async def _whole(response: ClientResponse) -> bytes:
    parts, num_bytes = [], 0
    async for part in response.content.iter_any():
        parts.append(part)
        num_bytes += len(part)
        if num_bytes > MAX_BYTES:
            raise NodeUnavailable(f"{response.url} says over {MAX_BYTES} bytes", param="url")
    return b"".join(parts)


def _health_of(body: bytes) -> _Health:
    """In LMDeploy's words, with 200. Other servers' words, or none, are no matter."""
    try:
        return msgspec.json.decode(body, type=_Health)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _Health()


def _words(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "it does not answer in time"
    return str(error) or type(error).__name__
