"""The way of a request that is not for the distributor itself.

read ─► wish ─► choose a node ─► send ─► first byte of the answer ─► copy to the end
                    ▲                │ the node is lost: another, if the request allows
                    └────────────────┘
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from secrets import token_hex

from aiohttp import ClientConnectionError as ConnectionFailed
from aiohttp import ClientConnectorError, ClientError, ClientResponse, ClientSession, web
from multidict import CIMultiDict
from yarl import URL

from lmserve.distributor.auth import key_of
from lmserve.distributor.body import Bodies, Body, outgoing
from lmserve.distributor.dispatch import Dispatch, session_away
from lmserve.distributor.errors import NodeLost, NodeUnavailable, SessionAway
from lmserve.distributor.headers import has_passed, to_node, upgrade_of
from lmserve.distributor.metrics import Metrics
from lmserve.distributor.nodes import Node
from lmserve.distributor.settings import ProxySettings
from lmserve.distributor.stream import Answer, NodeBroke
from lmserve.distributor.tunnel import Tunnel
from lmserve.distributor.wish import Wish, wish_of
from lmserve.edge.middlewares import REQUEST_ID
from lmserve.protocol.interactive import InteractiveEncoder

# Paths whose work may be done twice: a node lost after the request reached it is no obstacle.
REPEATABLE = ("/v1/", "/generate")

logger = logging.getLogger(__name__)


class _NoAnswer(Exception):
    """The node was lost before the first byte of its answer."""

    def __init__(self, reason: str, *, sent: bool):
        super().__init__(reason)
        self.sent = sent  # it may have begun to work on the request


class Proxy:
    def __init__(
        self,
        dispatch: Dispatch,
        session: ClientSession,
        metrics: Metrics,
        settings: ProxySettings,
    ):
        self.dispatch = dispatch
        self._session = session
        self._metrics = metrics
        self._settings = settings
        self.bodies = Bodies(settings)
        self.name = f"lmserve-{token_hex(8)}"
        self._open: set[asyncio.Timeout] = set()
        self._idle = asyncio.Event()
        self.stopping = False

    async def drain(self, timeout_s: float) -> None:
        """Lets open answers finish until the deadline, then ends them with a word."""
        self.stopping = True
        if self._open:
            self._idle.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._idle.wait()
        for each in self._open:
            if not each.expired():
                each.reschedule(asyncio.get_running_loop().time())

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.check(request)
        with self.bodies.empty() as body:
            await self.bodies.read(request, body)
            model = request.query.get("model")
            key, method = key_of(request), request.method
            wish = wish_of(
                request.path,
                model,
                key,
                body.data,
                method=method,
                request_key=request.headers.get("Idempotency-Key"),
            )
            try:
                return await self._answer(request, wish, body)
            except SessionAway:
                if not wish.only_ends:
                    raise
                self.dispatch.forget(wish)
                return _ended()

    def gone(self, node: Node, reason: str) -> NodeUnavailable:
        """It did not answer: nothing goes there until it does."""
        self._metrics.failures.labels(node.url).inc()
        node.suspect(reason)
        return NodeUnavailable(f"{node.url} does not answer: try again in a moment")

    def check(self, request: web.Request) -> None:
        """Raises NodeUnavailable where nothing can be done for it."""
        if self.stopping:
            raise NodeUnavailable("the distributor is stopping: try again in a moment")
        if has_passed(request, self.name):  # 503: whoever sent it asks another node
            raise NodeUnavailable("this distributor is one of its own nodes: remove it")

    async def _answer(self, request: web.Request, wish: Wish, body: Body) -> web.StreamResponse:
        headers = to_node(request, request[REQUEST_ID], self.name)
        upgrade = upgrade_of(request.headers)
        if upgrade is not None:
            headers["Connection"], headers["Upgrade"] = "Upgrade", upgrade
        tried: list[Node] = []
        times_lost = 0  # with the node it was sent to; once only: it may be what ends them
        while True:
            node = self.dispatch.choose(wish, tried)
            if tried:
                self._metrics.retries.labels(tried[-1].url).inc()
            tried.append(node)
            try:
                return await self._ask(node, request, wish, headers, body, tried)
            except _NoAnswer as error:
                self._metrics.failures.labels(node.url).inc()
                node.suspect(str(error))
                if error.sent and wish.session is not None:
                    raise session_away(wish.session_id, node.url) from None
                times_lost += error.sent
                if error.sent and (times_lost > 1 or not request.path.startswith(REPEATABLE)):
                    raise NodeUnavailable(
                        f"{node.url} was lost while it worked on the request"
                    ) from None

    async def _ask(
        self,
        node: Node,
        request: web.Request,
        wish: Wish,
        headers: CIMultiDict[str],
        body: Body,
        tried: list[Node],
    ) -> web.StreamResponse:
        """One node's answer. Raises _NoAnswer, for the next to be asked, while nothing of it has
        been sent to the client."""
        began = time.monotonic()
        self._metrics.requests.labels(node.url).inc()
        answer: Answer | Tunnel | None = None
        try:
            async with asyncio.timeout(None) as cut:
                with self._serving(node, cut):
                    upstream = await self._send(node, request, headers, body.data)
                    try:
                        if upstream.status == 503 and self.dispatch.others(wish, tried):
                            raise _NoAnswer("it says 503: not ready", sent=False)
                        self.dispatch.answered(wish, node, upstream.status, _told(upstream))
                        body.release()
                        if upstream.status == 101:
                            answer = Tunnel(request, upstream)
                        else:
                            answer = Answer(request, upstream, self._settings.write_timeout_s)
                        copied = await answer.copy()
                        # one that fails fast is not a fast one, nor one whose client leaves early
                        if upstream.status < 400 and answer.is_whole:
                            node.latency.append(time.monotonic() - began)
                            self.dispatch.ended(wish)
                        return copied
                    finally:
                        upstream.close()
        except (NodeBroke, TimeoutError) as error:
            if answer is None and self.stopping:
                raise NodeUnavailable("the distributor was stopped: try again") from None
            if answer is None:
                raise _NoAnswer("it fell silent", sent=True) from None
            return await self._break_off(node, answer, error)
        finally:
            self._metrics.latency.labels(node.url).observe(time.monotonic() - began)

    @contextmanager
    def _serving(self, node: Node, cut: asyncio.Timeout) -> Iterator[None]:
        self._open.add(cut)
        try:
            with node.serving(cut):
                yield
        finally:
            self._open.discard(cut)
            if not self._open:
                self._idle.set()

    async def _send(
        self, node: Node, request: web.Request, headers: CIMultiDict[str], body: bytes
    ) -> ClientResponse:
        if body:
            headers["Content-Length"] = str(len(body))
        try:
            return await self._session.request(
                request.method,
                URL(node.url + request.rel_url.raw_path_qs, encoded=True),
                headers=headers,
                data=outgoing(body) if body else None,
                allow_redirects=False,
            )
        except (ClientConnectorError, TimeoutError) as error:
            raise _NoAnswer(str(error) or "it cannot be connected to", sent=False) from None
        except (ConnectionFailed, ClientError, OSError) as error:
            raise _NoAnswer(str(error) or type(error).__name__, sent=True) from None

    async def _break_off(
        self, node: Node, answer: Answer | Tunnel, error: BaseException
    ) -> web.StreamResponse:
        if self.stopping:
            message = "the distributor was stopped before the answer ended"
        else:
            self._metrics.failures.labels(node.url).inc()
            node.suspect(f"an answer broke: {error}")
            message = "the node was lost before the answer ended: ask again"
        logger.warning("%s: %s", node.url, message)
        return await answer.break_off(NodeLost(message))


def _told(upstream: ClientResponse) -> list[str]:
    """The ids that a node gave: of a session that came without one, of a stream."""
    named = (upstream.headers.get(name) for name in ("X-Session-Id", "X-Stream-Id"))
    return [id for id in named if id]


def _ended() -> web.Response:
    """What the node of a session would have said to its end."""
    body = InteractiveEncoder().whole("", 0, "stop")
    return web.Response(body=body, content_type="application/json")
