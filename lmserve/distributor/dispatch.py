"""The choice of a node for each request: model, then session, then beginning, then strategy."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable, Sequence
from typing import Generic, TypeVar

from lmserve.distributor.errors import NodeUnavailable, SessionAway
from lmserve.distributor.nodes import Node, Nodes
from lmserve.distributor.policy import STRATEGIES, rendezvous
from lmserve.distributor.wish import Wish, session_key
from lmserve.errors import ModelNotFound, SessionExists
from lmserve.ids import node_of

MAX_SESSIONS = 100_000
MAX_REQUESTS = 50_000  # that have a name
MAX_PREFIXES = 50_000

Key = TypeVar("Key", str, bytes)

_KINDS = {"resp_": "response", "strm_": "stream"}


class Recent(Generic[Key]):
    """Which URL each key went to; what was not used for longest makes room."""

    def __init__(self, most: int):
        self._most = most
        self._urls: OrderedDict[Key, str] = OrderedDict()

    def get(self, key: Key) -> str | None:
        if key in self._urls:
            self._urls.move_to_end(key)
        return self._urls.get(key)

    def put(self, key: Key, url: str) -> None:
        self._urls[key] = url
        self._urls.move_to_end(key)
        if len(self._urls) > self._most:
            self._urls.popitem(last=False)

    def drop(self, key: Key) -> None:
        self._urls.pop(key, None)

    def __len__(self) -> int:
        return len(self._urls)


class Dispatch:
    def __init__(self, nodes: Nodes, strategy: str):
        self._nodes = nodes
        self._strategy = STRATEGIES[strategy]
        self._sessions: Recent[str] = Recent(MAX_SESSIONS)
        self._requests: Recent[str] = Recent(MAX_REQUESTS)
        self._prefixes: Recent[bytes] = Recent(MAX_PREFIXES)

    def choose(self, wish: Wish, tried: Collection[Node] = ()) -> Node:
        """A living node, none of those tried. Raises what the client should be told."""
        if wish.session is not None:
            node = self._home(wish, wish.session, tried)
            self._check_fork(wish, node)
            return node
        nodes = self._able(wish, tried)
        node = self._same(wish, nodes) or self._warm(wish, nodes) or self._strategy(nodes)
        for prefix in wish.prefixes:
            self._prefixes.put(prefix, node.url)
        return node

    def is_able(self, node: Node, wish: Wish, tried: Collection[Node]) -> bool:
        return node in self._living(wish, tried)

    def others(self, wish: Wish, tried: Collection[Node]) -> bool:
        """Whether there is one left to try. A session has one node."""
        return wish.session is None and bool(self._living(wish, tried))

    def answered(self, wish: Wish, node: Node, status: int, told_ids: Iterable[str] = ()) -> None:
        """The node took the request: a session stays there, until its last answer `ended`.
        `told_ids`: of what the node opened."""
        if status >= 400:
            return
        if wish.again is not None:
            self._requests.put(wish.again, node.url)
        if wish.session is not None and not self._is_told(wish.kept_by, node):
            self._sessions.put(wish.session, node.url)
        if wish.opens_for is not None:
            for id in told_ids:
                self.learn(wish.opens_for, id, node)

    def learn(self, api_key: str, id: str, node: Node) -> None:
        """This session is there. Most ids say so themselves."""
        if not self._is_told(node_of(id), node):
            self._sessions.put(session_key(api_key, id), node.url)

    def _is_told(self, by: str | None, node: Node) -> bool:
        """Whether an id that this node gave tells it from all others."""
        return by is not None and self._nodes.named(by) == [node]

    def ended(self, wish: Wish) -> None:
        """The whole answer came: so the session, where this was its last, is over."""
        if wish.ends_session:
            self.forget(wish)

    def forget(self, wish: Wish) -> None:
        if wish.session is not None:
            self._sessions.drop(wish.session)

    def _home(self, wish: Wish, session: str, tried: Collection[Node]) -> Node:
        url = self._sessions.get(session)
        if wish.kept_by is not None and (named := self._nodes.named(wish.kept_by)):
            able = [node for node in named if node.alive and node not in tried]
            if not able:
                raise session_away(wish.session_id, named[0].url)
            known = [node for node in able if node.url == url]
            return rendezvous(session, known or able)
        if url is not None:
            node = self._nodes.find(url)
            if node is None or not node.alive or node in tried:
                raise session_away(wish.session_id, url)
            return node
        able = self._able(wish, tried)
        if wish.kept_by is not None:  # by a node that is gone, unless others give such ids, too
            able = [node for node in able if node.asked and node.id is None]
            if not able:
                raise session_away(wish.session_id, f"node {wish.kept_by}")
        return rendezvous(session, able)  # new, or from before a restart: where it was, if it lives

    def _check_fork(self, wish: Wish, node: Node) -> None:
        """Its node cannot know of the sessions of others, and would hide one. Raises
        SessionExists."""
        url = None if wish.forks_to is None else self._sessions.get(wish.forks_to)
        if url not in (None, node.url):
            id = wish.forks_to_id[:64]
            raise SessionExists(f"there is a session {id} already: choose another id")

    def _same(self, wish: Wish, nodes: Sequence[Node]) -> Node | None:
        """The node that knows the answer to this request, if it was sent before."""
        if wish.again is None:
            return None
        url = self._requests.get(wish.again)
        known = [node for node in nodes if node.url == url]
        return known[0] if known else rendezvous(wish.again, nodes)

    def _warm(self, wish: Wish, nodes: Sequence[Node]) -> Node | None:
        """The node that saw the same beginning lately, unless others have far less to do."""
        most = 2 * min(node.unfinished for node in nodes) + 4
        by_url = {node.url: node for node in nodes}
        for prefix in wish.prefixes:
            node = by_url.get(self._prefixes.get(prefix) or "")
            if node is not None and node.unfinished <= most:
                return node
        return None

    def _living(self, wish: Wish, tried: Collection[Node]) -> list[Node]:
        return [
            node
            for node in self._nodes
            if node.alive and node not in tried and wish.model in (None, *node.models)
        ]

    def _able(self, wish: Wish, tried: Collection[Node]) -> list[Node]:
        able = self._living(wish, tried)
        if not able:
            raise self._why_none(wish, tried)
        return able

    def _why_none(self, wish: Wish, tried: Collection[Node]) -> ModelNotFound | NodeUnavailable:
        if tried:
            urls = ", ".join(node.url for node in tried)
            return NodeUnavailable(f"no node answered ({urls}): try again in a moment")
        if not len(self._nodes):
            return NodeUnavailable("there are no nodes: start servers with --proxy-url")
        if not any(node.alive for node in self._nodes):
            return NodeUnavailable("no node is alive; GET /nodes/status says why: try again later")
        assert wish.model is not None, "some node lives, and any would do"
        if any(wish.model in node.models for node in self._nodes):
            return NodeUnavailable(f"no node with {wish.model[:200]!r} is alive: try again later")
        served = sorted({model for node in self._nodes for model in node.models})
        return ModelNotFound(
            f"the model {wish.model[:200]!r} is not served here: use one of {', '.join(served)}",
            param="model",
        )


def session_away(session_id: int | str, where: str) -> SessionAway:
    if isinstance(session_id, str):
        what = _KINDS.get(session_id[:5], "session")
        return SessionAway(
            f"{what} {session_id[:70]} is kept by {where}, which does not answer: wait until it is "
            "back, or create another"
        )
    return SessionAway(
        f"session {session_id} is kept by {where}, which does not answer: wait until it is back, "
        f'or end the session with {{"session_id": {session_id}, "prompt": "", '
        '"request_output_len": 0, "interactive_mode": false} and begin anew',
        param="session_id",
    )
