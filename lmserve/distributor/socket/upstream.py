"""A node's end of a client's connection: opened for the first event that is for it, and kept, since
what is not stored belongs to it."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from aiohttp import (
    ClientError,
    ClientSession,
    ClientWebSocketResponse,
    ClientWSTimeout,
    WSMsgType,
    WSServerHandshakeError,
)
from multidict import CIMultiDict

from lmserve.distributor.body import Body
from lmserve.distributor.nodes import Node
from lmserve.distributor.socket.asked import Asked, Ledger
from lmserve.distributor.wish import RESPONSES, Wish
from lmserve.errors import CrossSite, LmserveError, Unauthorized

MAX_EVENT_BYTES = 256 * 2**20  # of a node's: a whole session's export, say
OPEN_S = 10.0
CLOSE_S = 2.0

Socket = ClientWebSocketResponse[bool]

logger = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Frame:
    """An event of the client. Held until it was sent, or refused."""

    kind: WSMsgType
    body: Body
    wish: Wish
    asked: Asked
    tried: list[Node] = field(default_factory=list)


class NotOpened(Exception):
    """The node takes no connection: another may."""


class Opener:
    """Opens connections to nodes, for one client."""

    def __init__(self, session: ClientSession, headers: CIMultiDict[str]):
        self._session = session
        self._headers = headers
        self.api_key = ""  # none has come

    async def open(self, node: Node, more: dict[str, str] | None = None) -> Socket:
        """Raises NotOpened, or LmserveError for what the node said."""
        headers = self._headers.copy()
        if self.api_key:
            headers["Authorization"] = f"Bearer {self.api_key}"
        headers.update(more or {})
        try:
            async with asyncio.timeout(OPEN_S):
                return await self._session.ws_connect(
                    node.url + RESPONSES,
                    headers=headers,
                    timeout=ClientWSTimeout(ws_close=CLOSE_S),
                    max_msg_size=MAX_EVENT_BYTES,
                    decode_text=False,
                )
        except WSServerHandshakeError as error:
            if error.status == 503:
                raise NotOpened("it says 503: not ready") from None
            raise _refusal(node, error.status) from None
        except (ClientError, OSError, TimeoutError) as error:
            raise NotOpened(str(error) or "it does not answer in time") from None


class Upstream:
    """One of them. What is put goes in order; it ends with the connection, whoever ends that."""

    def __init__(
        self,
        node: Node,
        opener: Opener,
        on_event: Callable[[Upstream, bytes], Awaitable[None]],
        on_end: Callable[[Upstream, Exception | None], Awaitable[None]],
    ):
        self.node = node
        self.ledger = Ledger()
        self.close_code: int | None = None
        self.unsent: deque[Frame] = deque()
        self._opener = opener
        self._on_event = on_event
        self._on_end = on_end
        self._some = asyncio.Event()
        self._num_counted = 0
        self._task = asyncio.create_task(self._run())

    def put(self, frame: Frame) -> None:
        self.unsent.append(frame)
        self.ledger.add(frame.asked)
        self.count()
        self._some.set()

    def count(self) -> None:
        """Tells the node's load, after a change of what was asked."""
        num_answers = self.ledger.num_answers
        self.node.unfinished += num_answers - self._num_counted
        self._num_counted = num_answers

    def close(self) -> asyncio.Task[None]:
        """Whatever task this is called in. `on_end` is not called then. Returns what says goodbye
        to the node."""
        self._task.cancel()
        self._uncount()  # the task may never have begun
        self.release()
        return self._task

    def release(self) -> None:
        """What was not sent will not be."""
        for frame in self.unsent:
            frame.body.release()

    async def _run(self) -> None:
        failure: Exception | None = None
        try:
            async with asyncio.timeout(None) as cut:
                with self.node.cutting(cut):
                    await self._serve(await self._opener.open(self.node))
        except TimeoutError:
            pass  # the watch over the node gave it up
        except (NotOpened, LmserveError) as error:
            failure = error
        except Exception:
            logger.exception("the connection to %s failed", self.node.url)
        finally:
            self._uncount()
        await self._on_end(self, failure)

    def _uncount(self) -> None:
        self.node.unfinished -= self._num_counted
        self._num_counted = 0

    async def _serve(self, socket: Socket) -> None:
        sending = asyncio.create_task(self._send(socket))
        try:
            async for message in socket:
                if message.type is WSMsgType.TEXT:
                    await self._on_event(self, message.data)
            self.close_code = socket.close_code
        finally:
            sending.cancel()
            await asyncio.wait([sending])
            await socket.close()

    async def _send(self, socket: Socket) -> None:
        while True:
            await self._some.wait()
            self._some.clear()
            while self.unsent:
                frame = self.unsent.popleft()
                try:
                    await socket.send_frame(frame.body.data, frame.kind)
                except (ConnectionError, ClientError):
                    return  # its receiver sees it, too
                finally:
                    frame.body.release()


def _refusal(node: Node, status: int) -> LmserveError:
    if status == 401:
        return Unauthorized("the API key is not known here: ask whoever runs this server for one")
    if status == 403:
        return CrossSite(
            "another web page may not call this: have the servers started with its origin in "
            "--allow-origins"
        )
    return LmserveError(f"{node.url} takes no WebSocket at {RESPONSES}: it says {status}")
