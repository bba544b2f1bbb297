"""Which conversation keeps which beginning from eviction: one pin a key.

A pin is a wish: under the last shortage it is broken, which costs time, never correctness.
"""

from __future__ import annotations

from collections.abc import Sequence as Tokens

from lmserve.engine.cache.blocks import BlockPool
from lmserve.engine.cache.prefix import Pin, PrefixTree


class Pins:
    def __init__(self, pool: BlockPool, tree: PrefixTree):
        self._pool = pool
        self._tree = tree
        self._pins: dict[str, Pin] = {}

    def pin(self, key: str, tokens: Tokens[int], namespace: int = 0) -> dict[str, int]:
        """The pin of `key` keeps what is known of `tokens` from now on, and nothing else."""
        pin = self._tree.pin(tokens, namespace)
        self.unpin(key)  # after: what both keep was never without one
        if pin.nodes:
            self._pins[key] = pin
        return {
            "num_tokens": pin.num_tokens,
            "num_blocks": len(pin.nodes),
            "pinned_blocks": self._pool.num_kept,  # of all keys; shared ones count once
        }

    def unpin(self, key: str) -> dict[str, int]:
        pin = self._pins.pop(key, None)
        if pin is not None:
            self._tree.unpin(pin)
        return {"pinned_blocks": self._pool.num_kept}
