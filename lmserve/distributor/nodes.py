"""The servers behind a distributor, and what is known of each."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import re
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from yarl import URL

from lmserve.distributor.errors import NodeNotFound
from lmserve.errors import InvalidField

NUM_LATENCIES = 15  # request times kept of each node
MAX_NODES = 1024  # each is asked for its health again and again
MAX_URL_CHARS = 512
WILDCARDS = ("0.0.0.0", "::")
_NAME = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*\.?")

logger = logging.getLogger(__name__)


class Node:
    """One server. `alive`: it gets new requests."""

    def __init__(self, url: str, *, configured: bool):
        self.url = url
        self.configured = configured  # by whoever started the distributor: never dropped
        self.id: str | None = None  # what it keeps is named so; None: not known, or none
        self.asked = False  # whether it has one
        self.models: tuple[str, ...] = ()
        self.told = False  # the models, by who added it: it is not asked for them
        self.speed: float | None = None  # requests per unit of time, the same unit for all nodes
        self.latency: deque[float] = deque(maxlen=NUM_LATENCIES)  # seconds a request took
        self.unfinished = 0
        self.alive = False
        self.reason = "not asked yet"  # why it is not alive
        self.created = int(time.time())
        self.seen_s = time.monotonic()  # it answered, or announced itself
        self.doubted = asyncio.Event()  # set: ask for its health now
        self._open: set[asyncio.Timeout] = set()

    def __repr__(self) -> str:
        return f"<Node {self.url}>"

    @contextmanager
    def serving(self, cut: asyncio.Timeout) -> Iterator[None]:
        """While a request is with this node; `cut` ends it when the node is lost."""
        self.unfinished += 1
        try:
            with self.cutting(cut):
                yield
        finally:
            self.unfinished -= 1

    @contextmanager
    def cutting(self, cut: asyncio.Timeout) -> Iterator[None]:
        """As `serving`, for what is no request itself."""
        self._open.add(cut)
        try:
            yield
        finally:
            self._open.discard(cut)

    def seen(self) -> None:
        self.seen_s = time.monotonic()

    def up(self) -> None:
        self.seen()
        if not self.alive:
            self.alive = True
            self.reason = ""
            logger.info("%s is alive, with %s", self.url, ", ".join(self.models) or "no model")

    def down(self, reason: str) -> None:
        if self.alive:
            logger.warning("%s gets no requests for now: %s", self.url, reason)
        self.alive = False
        self.reason = reason

    def suspect(self, reason: str) -> None:
        """A request failed: nothing more goes there until its health was asked for."""
        self.down(reason)
        self.doubted.set()

    def cut(self) -> None:
        """Ends what is open there."""
        now = asyncio.get_running_loop().time()
        for each in list(self._open):
            if not each.expired():
                each.reschedule(now)


class Nodes:
    """By URL, in the order they came."""

    def __init__(self) -> None:
        self._nodes: dict[str, Node] = {}

    def __iter__(self) -> Iterator[Node]:
        return iter(list(self._nodes.values()))

    def __len__(self) -> int:
        return len(self._nodes)

    def __contains__(self, node: Node) -> bool:
        return self._nodes.get(node.url) is node

    def find(self, url: str) -> Node | None:
        return self._nodes.get(url)

    def named(self, id: str) -> list[Node]:
        """More than one where a data directory was copied, or a server has moved."""
        return [node for node in self._nodes.values() if node.id == id]

    def get(self, url: str) -> Node:
        node = self._nodes.get(node_url(url))
        if node is None:
            raise NodeNotFound(
                f"there is no node {url[:200]}: GET /nodes/status lists them", param="url"
            )
        return node

    def add(self, node: Node) -> None:
        self._nodes[node.url] = node

    def remove(self, node: Node) -> None:
        self._nodes.pop(node.url, None)


def node_url(text: str) -> str:
    """The one way to write a node's URL. Raises InvalidField, which says what is wrong."""
    try:
        url = URL(text.strip())
        wrong = url.scheme not in ("http", "https") or url.port in (None, 0) or not _is_host(url)
        wrong = wrong or len(text) > MAX_URL_CHARS
    except ValueError:
        raise _not_a_url(text) from None
    if wrong or url.user or url.password or url.query_string or url.fragment:
        raise _not_a_url(text)
    if url.host in WILDCARDS:
        raise InvalidField(
            f"{text[:200]} is every address of a machine and none to call: give the node's own, "
            "as its --advertise-url",
            param="url",
        )
    return str(url).rstrip("/")


def _is_host(url: URL) -> bool:
    """What looks names up would fail at it, much later. Raises ValueError for a part of a name
    that is too long."""
    host = url.host or ""
    if ":" in host:
        ipaddress.ip_address(host)
        return "%" not in host
    host.encode("idna")
    return bool(_NAME.fullmatch(url.raw_host or ""))


def _not_a_url(text: str) -> InvalidField:
    return InvalidField(
        f"{text[:200]!r} is no URL of a node: give one such as http://10.0.0.5:23333", param="url"
    )
