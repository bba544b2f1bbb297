"""What a distributor is told at its start."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ProxySettings:
    strategy: str = "min_expected_latency"
    nodes: tuple[str, ...] = ()  # known from the start, and never dropped
    api_keys: tuple[str, ...] = ()
    max_body_bytes: int = 64 * 2**20  # of one request, held until a node answers it
    max_held_bytes: int = 1024 * 2**20  # of all of them
    body_timeout_s: float = 60.0  # a body that has not arrived by then is given up
    write_timeout_s: float = 30.0  # a client that reads nothing this long is dropped
    connect_timeout_s: float = 5.0
    health_interval_s: float = 2.0
    health_timeout_s: float = 5.0
    cut_after_s: float = 30.0  # a node silent this long has its open answers ended
    forget_after_s: float = 35.0  # and one that registered itself is dropped
    drain_timeout_s: float = 10.0
