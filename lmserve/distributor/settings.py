"""What a distributor is told at its start."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ProxySettings:
    strategy: str = "min_expected_latency"
    nodes: tuple[str, ...] = ()  # known from the start, and never dropped
    server_name: str = "127.0.0.1"
    ssl: bool = False  # HTTPS, with the files in $SSL_KEYFILE and $SSL_CERTFILE
    api_keys: tuple[str, ...] = ()  # nodes must know the first
    admin_keys: tuple[str, ...] = ()
    key_file: str | None = None
    allowed_hosts: tuple[str, ...] = ()
    max_body_bytes: int = 64 * 2**20  # of one request, held until a node answers it
    max_held_bytes: int = 1024 * 2**20  # of all of them
    max_connections: int = 4096  # before others are turned away
    max_sockets: int = 1024  # WebSockets, before others get 503
    header_timeout_s: float = 10.0  # a head must have come by then
    body_timeout_s: float = 30.0  # a body of which nothing comes for this long is given up
    write_timeout_s: float = 30.0  # a client that reads nothing this long is dropped
    connect_timeout_s: float = 5.0
    health_interval_s: float = 2.0
    health_timeout_s: float = 5.0
    cut_after_s: float = 30.0  # a node silent this long has its open answers ended
    forget_after_s: float = 35.0  # and one that registered itself is dropped
    drain_timeout_s: float = 10.0
