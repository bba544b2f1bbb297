"""The prefix tree: which block holds the KV of which tokens, exact to the token.

A node is one block with the 1 … block_size token ids whose KV it holds, after the tokens of
its parents. Only full nodes have children. Whatever is in the tree is never written again: a
sequence that matches part of a node copies that part into a block of its own.

The tree owns blocks through the pool's `keep` and `drop`; sequences hold references on them.
Only leaves are evicted, so the parents of a live node stay, whoever holds them.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from lmserve.engine.cache.blocks import BlockPool, IntegrityError

Tokens = tuple[int, ...]


class Node:
    """One block of the tree. A root has no block; its only token is its namespace."""

    __slots__ = ("alive", "block", "children", "keys", "last_used", "parent", "tokens")

    def __init__(self, parent: Node | None, tokens: Tokens, block: int):
        self.parent = parent
        self.tokens = tokens
        self.block = block
        self.alive = True  # False once removed: whoever still points here must look again
        self.last_used = 0
        self.children: dict[Tokens, Node] = {}
        self.keys: list[Tokens] = []  # those of `children`, sorted: neighbours share the most


@dataclass(frozen=True, slots=True)
class Match:
    """The longest known beginning: shared full nodes, then part of one more."""

    nodes: list[Node]
    partial: Node | None = None
    num_partial: int = 0  # its first tokens, to be copied on write

    @property
    def all_nodes(self) -> list[Node]:
        return self.nodes if self.partial is None else [*self.nodes, self.partial]


@dataclass(frozen=True, slots=True)
class Pin:
    nodes: list[Node]
    num_tokens: int = 0  # known when it was made


class PrefixTree:
    def __init__(self, pool: BlockPool, block_size: int):
        self.pool = pool
        self.block_size = block_size
        self._roots: dict[int, Node] = {}
        self._nodes: dict[int, Node] = {}  # by block
        self._clock = 0
        self._pushed = 0  # breaks ties in the heap
        # Leaves nobody uses, oldest first. An entry whose node was used since is stale and is
        # skipped; the node comes back with a new entry when it is released.
        self._idle: list[tuple[int, int, Node]] = []

    def __len__(self) -> int:
        return len(self._nodes)

    def root(self, namespace: int = 0) -> Node:
        """Where the first block of a namespace is inserted. The root goes with its last child."""
        root = self._roots.get(namespace)
        if root is None:
            root = self._roots[namespace] = Node(None, (namespace,), -1)
        return root

    # --- looking up -----------------------------------------------------------------------

    def match(self, tokens: Sequence[int], limit: int, namespace: int = 0) -> Match:
        """What is known of the first `limit` tokens. Changes nothing and holds nothing."""
        size = self.block_size
        node = self._roots.get(namespace)
        if node is None:
            return Match([])
        nodes: list[Node] = []
        start = 0
        while start + size <= limit:
            child = node.children.get(tuple(tokens[start : start + size]))
            if child is None:
                break
            nodes.append(child)
            node = child
            start += size
        wanted = tuple(tokens[start : min(start + size, limit)])
        partial, num_partial = _closest(node, wanted)
        return Match(nodes, partial, num_partial)

    # --- inserting ------------------------------------------------------------------------

    def insert(self, parent: Node, tokens: Tokens, block: int) -> Node:
        """Hangs a held block under `parent`; returns the node that now stands for `tokens`.

        Where that node exists already, the block stays the caller's own, unless nobody uses
        the node's: then the node takes the caller's and the old one is free.
        """
        node = parent.children.get(tokens)
        if node is not None:
            if self.pool.idle(node.block):
                self._swap(node, block)
            return node
        keys = parent.keys
        at = bisect_left(keys, tokens)
        if at < len(keys) and _starts_with(keys[at], tokens):
            return parent.children[keys[at]]  # a longer sibling holds these tokens already
        node = Node(parent, tokens, block)
        node.last_used = self._clock
        parent.children[tokens] = node
        keys.insert(at, tokens)
        self._nodes[block] = node
        self.pool.keep(block)
        while at and _starts_with(tokens, keys[at - 1]):
            shorter = parent.children[keys[at - 1]]
            if not self.pool.idle(shorter.block):
                break
            self._remove(shorter)
            at -= 1
        return node

    def _swap(self, node: Node, block: int) -> None:
        del self._nodes[node.block]
        self.pool.drop(node.block)
        node.block = block
        self._nodes[block] = node
        self.pool.keep(block)

    # --- letting go -----------------------------------------------------------------------

    def release(self, blocks: list[int], *, used: bool = True) -> None:
        """A sequence is done with its blocks; those in the tree become evictable, newest. Who
        has not `used` them leaves them as old as they were."""
        self._clock += used
        for block in reversed(blocks):
            self.pool.release(block)
            node = self._nodes.get(block)
            if node is not None:
                if used:
                    node.last_used = self._clock
                self._offer(node)

    def forget(self, blocks: list[int]) -> None:
        """As `release`, after a failure: nobody finds them again."""
        self.spoil(blocks)
        self.release(blocks)

    def spoil(self, blocks: list[int]) -> None:
        """They are suspect, and what follows them in the tree too, whoever uses it."""
        self.pool.suspect.update(blocks)
        for block in blocks:
            node = self._nodes.get(block)
            if node is not None:
                self._cut(node)

    def _cut(self, top: Node) -> None:
        for node in reversed(list(_walk([top]))):  # children before their parents
            self.pool.suspect.add(node.block)
            self._remove(node)

    def evict(self) -> bool:
        """Frees the least recently used leaf that nobody uses."""
        while self._idle:
            used, _, node = heapq.heappop(self._idle)
            if node.last_used == used and self._evictable(node):
                self._remove(node)
                return True
        return False

    def evict_pinned(self) -> bool:
        """The last resort: breaks a pin. Looks at every node."""
        leaves = [
            node
            for node in self._nodes.values()
            if not node.children and self.pool.refs[node.block] == 0
        ]
        if not leaves:
            return False
        self._remove(min(leaves, key=lambda node: node.last_used))
        return True

    def clear(self) -> int:
        """Evicts all that nobody uses; returns how many blocks that were."""
        before = len(self._nodes)
        while self.evict():
            pass
        return before - len(self._nodes)

    def _remove(self, node: Node) -> None:
        parent = node.parent
        assert parent is not None and not node.children
        node.alive = False
        del parent.children[node.tokens]
        del parent.keys[bisect_left(parent.keys, node.tokens)]
        del self._nodes[node.block]
        self.pool.drop(node.block)
        if parent.parent is not None:
            self._offer(parent)
        elif not parent.children:
            del self._roots[parent.tokens[0]]

    def _evictable(self, node: Node) -> bool:
        return node.alive and not node.children and self.pool.idle(node.block)

    def _offer(self, node: Node) -> None:
        if not self._evictable(node):
            return
        if len(self._idle) > 2 * len(self._nodes) + 64:
            leaves = filter(self._evictable, self._nodes.values())
            self._idle = [(leaf.last_used, leaf.block, leaf) for leaf in leaves]
            heapq.heapify(self._idle)
            self._pushed = self.pool.num_blocks  # past every block number just used
            return
        self._pushed += 1
        heapq.heappush(self._idle, (node.last_used, self._pushed, node))

    # --- pins -----------------------------------------------------------------------------

    def pin(self, tokens: Sequence[int], namespace: int = 0) -> Pin:
        """Keeps what is known of `tokens` from eviction until `unpin`. A pin is a wish: under
        the last shortage it is broken, which costs time, never correctness."""
        match = self.match(tokens, len(tokens), namespace)
        nodes = match.all_nodes
        for node in nodes:
            self.pool.pin(node.block)
        return Pin(nodes, len(match.nodes) * self.block_size + match.num_partial)

    def unpin(self, pin: Pin) -> None:
        for node in pin.nodes:
            if node.alive:
                self.pool.unpin(node.block)
                self._offer(node)
        pin.nodes.clear()

    # --- integrity ------------------------------------------------------------------------

    def check(self) -> None:
        """Walks the whole tree. Raises IntegrityError."""
        offered = {id(node) for used, _, node in self._idle if node.last_used == used}
        seen: dict[int, Node] = {}
        for node in _walk(self._roots.values()):
            self._check_node(node)
            if node.parent is not None:
                seen[node.block] = node
                if self._evictable(node) and id(node) not in offered:
                    raise IntegrityError(f"block {node.block} can be evicted but is not offered")
        if seen != self._nodes:
            raise IntegrityError("the tree and its index by block disagree")
        if sum(self.pool.in_tree) != len(seen) or not all(map(self.pool.in_tree.__getitem__, seen)):
            raise IntegrityError("the tree and the pool disagree about the tree's blocks")

    def _check_node(self, node: Node) -> None:
        if not node.alive or node.keys != sorted(node.children):
            raise IntegrityError(f"block {node.block}: children out of order, or a dead node")
        if node.parent is None and not node.children:
            raise IntegrityError("a namespace is empty and kept")
        if node.children and node.parent is not None and len(node.tokens) != self.block_size:
            raise IntegrityError(f"block {node.block} is not full and has children")
        for tokens, child in node.children.items():
            if child.parent is not node or child.tokens != tokens:
                raise IntegrityError(f"block {child.block} hangs in the wrong place")
            if not 1 <= len(tokens) <= self.block_size:
                raise IntegrityError(f"block {child.block} holds {len(tokens)} tokens")


def _walk(tops: Iterable[Node]) -> Iterator[Node]:
    """All of these subtrees, parents before their children."""
    stack = list(tops)
    while stack:
        node = stack.pop()
        yield node
        stack.extend(node.children.values())


def _starts_with(tokens: Tokens, beginning: Tokens) -> bool:
    return tokens[: len(beginning)] == beginning


def _closest(parent: Node, wanted: Tokens) -> tuple[Node | None, int]:
    """The child that shares the most first tokens with `wanted`, and how many.

    In sorted order it is one of the two neighbours of the place where `wanted` belongs.
    """
    best, longest = None, 0
    at = bisect_left(parent.keys, wanted)
    for key in parent.keys[max(at - 1, 0) : at + 1]:
        common = _num_common(key, wanted)
        if common > longest:
            best, longest = parent.children[key], common
    return best, longest


def _num_common(one: Tokens, other: Tokens) -> int:
    num = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        num += 1
    return num
