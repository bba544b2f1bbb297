"""Which of several nodes gets the next request, when nothing else ties it to one.

A strategy is given those that could answer, one at least. Nodes without a speed count as having
the mean of the others'.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from hashlib import blake2b
from math import log
from statistics import fmean

from lmserve.distributor.nodes import Node

Strategy = Callable[[Sequence[Node]], Node]


def speeds(nodes: Sequence[Node]) -> list[float]:
    known = [node.speed for node in nodes if node.speed]
    mean = fmean(known) if known else 1.0
    return [node.speed or mean for node in nodes]


def weighted_random(nodes: Sequence[Node]) -> Node:
    """In proportion to speed."""
    return random.choices(nodes, weights=speeds(nodes))[0]


def min_expected_latency(nodes: Sequence[Node]) -> Node:
    """The least work for its speed."""
    costs = (node.unfinished / speed for node, speed in zip(nodes, speeds(nodes), strict=True))
    return _least(nodes, list(costs))


def min_observed_latency(nodes: Sequence[Node]) -> Node:
    """The least time a request took lately, for each that would be in its way. A node that never
    answered is tried first, with one request: not all while it has yet to show its time."""
    untried = [node for node in nodes if not node.latency and not node.unfinished]
    if untried:
        return random.choice(untried)
    known = [fmean(node.latency) for node in nodes if node.latency]
    mean = fmean(known) if known else 1.0
    costs = [
        (fmean(node.latency) if node.latency else mean) * (1 + node.unfinished) for node in nodes
    ]
    return _least(nodes, costs)


def _least(nodes: Sequence[Node], costs: list[float]) -> Node:
    least = min(costs)
    return random.choice([n for n, cost in zip(nodes, costs, strict=True) if cost == least])


STRATEGIES: dict[str, Strategy] = {
    "random": weighted_random,
    "min_expected_latency": min_expected_latency,
    "min_observed_latency": min_observed_latency,
}


def rendezvous(key: str, nodes: Sequence[Node]) -> Node:
    """The node of this key: the same whoever asks and whenever, as long as it lives. Each gets
    its share of keys by speed; one that goes gives away its own keys and no others."""

    def score(url: str, weight: float) -> float:
        digest = blake2b(f"{key}\n{url}".encode("utf-8", "surrogatepass"), digest_size=6).digest()
        return -weight / log((int.from_bytes(digest) + 1) / (2**48 + 1))  # never of 0 or 1

    scored = zip(nodes, speeds(nodes), strict=True)
    return max(scored, key=lambda each: (score(each[0].url, each[1]), each[0].url))[0]
