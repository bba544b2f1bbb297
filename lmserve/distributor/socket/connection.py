"""One client's connection, and the nodes behind it.

                   ┌─► upstream of a node: what it keeps is asked there
client ─► frames ──┼─► upstream of another
                   └─► held: its lane is at work at another node
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from aiohttp import WSCloseCode, WSMsgType, web

from lmserve.distributor.body import Bodies
from lmserve.distributor.dispatch import Dispatch
from lmserve.distributor.errors import NodeLost, NodeUnavailable
from lmserve.distributor.metrics import Metrics
from lmserve.distributor.nodes import Node
from lmserve.distributor.socket.asked import Asked
from lmserve.distributor.socket.events import (
    Response,
    Seen,
    event_of,
    seen_in,
    text,
    wish_of_event,
)
from lmserve.distributor.socket.sockets import Sockets
from lmserve.distributor.socket.upstream import Frame, NotOpened, Opener, Upstream
from lmserve.edge.socket.writer import Writer
from lmserve.errors import LmserveError, Overloaded, Unauthorized
from lmserve.protocol.socket_events import error_event

MAX_HELD = 8  # on one lane, while another node answers there
MAX_LANES_HELD = 32
MAX_ASKED = 4096  # of one node: more than it would let wait
OFF_LOOP_BYTES = 32 * 1024  # larger events are looked into in a thread

ENDS = (WSMsgType.CLOSE, WSMsgType.CLOSING, WSMsgType.CLOSED, WSMsgType.ERROR)
# With which a node ends a connection for what came on it: the client's own is ended so, too.
FAULTS = frozenset(
    (
        WSCloseCode.PROTOCOL_ERROR,
        WSCloseCode.UNSUPPORTED_DATA,
        WSCloseCode.INVALID_TEXT,
        WSCloseCode.POLICY_VIOLATION,
        WSCloseCode.MESSAGE_TOO_BIG,
    )
)


@dataclass(frozen=True, slots=True)
class Backend:
    """What all connections share."""

    dispatch: Dispatch
    bodies: Bodies
    metrics: Metrics
    sockets: Sockets
    is_stopping: Callable[[], bool]


class Connection:
    """`serve` returns when the client has left; then the nodes' ends are closed, too. Answers go
    on there, as if the client had been theirs."""

    def __init__(
        self,
        socket: web.WebSocketResponse[bool],
        writer: Writer,
        opener: Opener,
        backend: Backend,
    ):
        self._socket = socket
        self._writer = writer
        self._opener = opener
        self._backend = backend
        self._dispatch = backend.dispatch
        self._upstreams: dict[str, Upstream] = {}  # by URL
        self._anywhere: Node | None = None  # for what nothing ties to a node
        self._held: dict[str | None, deque[Frame]] = {}  # by lane
        self._changed = asyncio.Event()

    async def serve(self) -> None:
        try:
            while (message := await self._socket.receive()).type not in ENDS:
                await self._take(message.type, message.data)
        except ConnectionResetError:
            pass  # it was dropped, or left while it was told something
        finally:
            self._close()

    async def settled(self, timeout_s: float) -> None:
        """Returns when nothing is being answered, or then."""
        try:
            async with asyncio.timeout(timeout_s):
                while self._held or any(each.ledger.num_answers for each in self._all()):
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            pass

    # --- from the client --------------------------------------------------------------

    async def _take(self, kind: WSMsgType, data: bytes) -> None:
        try:
            body = self._backend.bodies.hold(data)
        except Overloaded as error:
            await self._writer.write(error_event(error))
            return
        if len(data) > OFF_LOOP_BYTES:
            try:
                event = await asyncio.to_thread(event_of, data)
            except asyncio.CancelledError:  # the client left meanwhile
                body.release()
                raise
        else:
            event = event_of(data)
        if event.type == "session.authenticate" and not self._opener.api_key:
            self._opener.api_key = text(event.api_key) or ""  # the nodes know whether it is one
        wish = wish_of_event(event, self._opener.api_key)
        asked = Asked(text(event.type) or "", text(event.event_id), text(event.stream_id), wish)
        if asked.type == "session.resume":
            asked.response = text(event.response_id)
        elif asked.type == "response.steer":
            asked.response = text(event.previous_response_id)
        await self._route([Frame(kind, body, wish, asked)])

    async def _route(self, frames: Iterable[Frame]) -> None:
        refused: list[tuple[Asked, LmserveError]] = []
        for frame in frames:  # at once: they keep their order
            try:
                upstream = self._place(frame)
                if upstream is not None:
                    upstream.put(frame)
                    if frame.asked.is_laned:
                        self._backend.metrics.requests.labels(upstream.node.url).inc()
            except LmserveError as error:
                frame.body.release()
                refused.append((frame.asked, error))
        for asked, why in refused:
            await self._tell(asked, why)

    def _place(self, frame: Frame) -> Upstream | None:
        """The node that gets it; None: it is held."""
        asked, wish, lane = frame.asked, frame.wish, frame.asked.lane
        if self._backend.is_stopping() and asked.is_laned:
            raise NodeUnavailable("the distributor is stopping: connect again in a moment")
        if not asked.is_laned:
            return self._upstream(self._node(frame))
        if lane in self._held:
            self._hold(frame)
            return None
        busy = next((each for each in self._all() if each.ledger.uses(lane)), None)
        if busy is not None and wish.session is None and busy.node not in frame.tried:
            return busy
        upstream = self._upstream(self._node(frame))
        if busy in (None, upstream):
            return upstream
        self._hold(frame)
        return None

    def _node(self, frame: Frame) -> Node:
        wish, node = frame.wish, self._anywhere
        free = wish.session is None and wish.again is None
        if free and node is not None and self._dispatch.is_able(node, wish, frame.tried):
            return node
        chosen = self._dispatch.choose(wish, frame.tried)
        if free and (node is None or not node.alive):
            self._anywhere = chosen
        return chosen

    def _upstream(self, node: Node) -> Upstream:
        upstream = self._upstreams.get(node.url)
        if upstream is None:
            upstream = Upstream(node, self._opener, self._on_event, self._on_end)
            self._upstreams[node.url] = upstream
        if len(upstream.ledger) >= MAX_ASKED:
            raise Overloaded("this connection waits for too many answers: wait for some of them")
        return upstream

    def _hold(self, frame: Frame) -> None:
        """Until its lane is free: another node answers there."""
        held = self._held.get(frame.asked.lane, ())
        if len(held) >= MAX_HELD or (not held and len(self._held) >= MAX_LANES_HELD):
            raise Overloaded("too much waits for this lane: wait, or use another lane")
        self._held.setdefault(frame.asked.lane, deque()).append(frame)

    # --- from the nodes ---------------------------------------------------------------

    async def _on_event(self, upstream: Upstream, data: bytes) -> None:
        seen = seen_in(data)
        asked, response = upstream.ledger.saw(seen)
        if asked is not None:
            upstream.count()
            self._learn(upstream.node, seen, asked, response)
            self._changed.set()
        try:
            await self._writer.write(data)
            if asked is not None and asked.lane in self._held:
                await self._route(self._held.pop(asked.lane))
        except ConnectionResetError:
            pass  # the reader hears of it too

    def _learn(self, node: Node, seen: Seen, asked: Asked, response: Response | None) -> None:
        """Which sessions are there."""
        if response is None or seen.type == "response.steer.failed":
            return
        if asked.wish.ends_session:
            self._dispatch.ended(asked.wish)
            return
        self._dispatch.answered(asked.wish, node, 200)
        opened = response.session if asked.is_laned else response.id
        if isinstance(opened, str) and asked.wish.opens_for is not None:
            self._dispatch.learn(asked.wish.opens_for, opened, node)

    async def _on_end(self, upstream: Upstream, failure: Exception | None) -> None:
        """The connection to a node was not to be had, or is lost."""
        del self._upstreams[upstream.node.url]
        self._changed.set()
        try:
            if isinstance(failure, NotOpened):
                await self._ask_others(upstream, failure)
            elif isinstance(failure, LmserveError):
                await self._tell_all(upstream, failure)
                if isinstance(failure, Unauthorized):
                    await self._end(WSCloseCode.POLICY_VIOLATION, b"not authenticated")
            elif upstream.close_code in FAULTS:
                upstream.release()
                await self._end(upstream.close_code, b"a node ended the connection")
            else:
                upstream.node.suspect("a connection ended")
                await self._tell_all(upstream, None)
            for lane in [lane for lane in self._held if not self._is_busy(lane)]:
                await self._route(self._held.pop(lane))
        except ConnectionResetError:
            pass  # the reader hears of it too

    async def _ask_others(self, upstream: Upstream, failure: NotOpened) -> None:
        upstream.node.suspect(str(failure))
        self._backend.metrics.failures.labels(upstream.node.url).inc()
        frames = list(upstream.unsent)
        for frame in frames:
            frame.tried.append(upstream.node)
        await self._route(frames)

    async def _tell_all(self, upstream: Upstream, error: LmserveError | None) -> None:
        """Of whatever it was asked, and nothing else."""
        upstream.release()
        for asked in upstream.ledger:
            if error is None:
                self._backend.metrics.failures.labels(upstream.node.url).inc()
            await self._tell(asked, error or _lost(asked))

    # --- what they share --------------------------------------------------------------

    def _all(self) -> list[Upstream]:
        return list(self._upstreams.values())

    def _is_busy(self, lane: str | None) -> bool:
        return any(each.ledger.uses(lane) for each in self._all())

    async def _tell(self, asked: Asked, error: LmserveError) -> None:
        event = error_event(error, event_id=asked.event_id, stream_id=asked.lane)
        await self._writer.write(event)

    async def _end(self, code: int, message: bytes) -> None:
        await self._socket.close(code=code, message=message)

    def _close(self) -> None:
        for upstream in self._all():
            self._backend.sockets.keep(upstream.close())
        for held in self._held.values():
            for frame in held:
                frame.body.release()
        self._held.clear()


def _lost(asked: Asked) -> NodeLost:
    if asked.response is None:
        return NodeLost("the node was lost before it answered: ask again")
    return NodeLost(
        f"the node was lost before {asked.response[:70]} ended: resume it when it is back"
    )
