"""A port to listen on, the URL of it, and what is logged of those who speak no HTTP there."""

from __future__ import annotations

import errno
import logging
import socket

from lmserve.errors import SetupError

_PROBES = {
    "TCP_KEEPIDLE": 30,  # seconds of silence
    "TCP_KEEPINTVL": 10,
    "TCP_KEEPCNT": 3,
    "TCP_USER_TIMEOUT": 60_000,  # ms in which what was sent must be acknowledged
}
WILDCARDS = ("0.0.0.0", "::")  # every address of this machine


class Leavers(logging.Filter):
    """A client that left before its answer is in the access log: no traceback here."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        return not isinstance(error, ConnectionResetError)


def wire_logger() -> logging.Logger:
    """aiohttp's own, less what any client could fill the log with."""
    logger = logging.getLogger("aiohttp.server")
    if not any(isinstance(each, Leavers) for each in logger.filters):
        logger.addFilter(Leavers())
    return logger


def bind(host: str, port: int, *, flags: str = "--server") -> socket.socket:
    """A bound socket. Raises SetupError, one line with the remedy, that the flags which begin so
    are."""
    if not 0 <= port < 2**16:  # getaddrinfo would wrap it
        raise SetupError(f"port {port} is not between 0 and 65535: give another {flags}-port")
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (socket.gaierror, UnicodeError):
        raise SetupError(
            f"{host!r} port {port} is no address to listen on: try {flags}-name 127.0.0.1"
        ) from None
    listener = socket.socket(family, kind, proto)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        _notice_the_dead(listener)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise SetupError(_why_not(host, port, error, flags)) from None
    return listener


def _notice_the_dead(listener: socket.socket) -> None:
    """Of a peer that vanished without a word, connections end after a minute. The sockets that are
    accepted have these from the one that listens."""
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _PROBES.items():
        if hasattr(socket, name):  # not every system has them
            listener.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _why_not(host: str, port: int, error: OSError, flags: str) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return f"port {port} of {host} is in use: give another with {flags}-port, or 0"
        case errno.EACCES:
            return f"port {port} needs more rights: give one above 1023 with {flags}-port"
        case errno.EADDRNOTAVAIL:
            return f"{host} is not an address of this machine: try {flags}-name 127.0.0.1"
        case _:
            return f"cannot listen on {host} port {port}: {error}"


def url_of(listener: socket.socket, *, https: bool = False) -> str:
    """What to open in a browser of this machine."""
    host, port = listener.getsockname()[:2]
    if host in WILDCARDS:  # a browser needs one
        host = "127.0.0.1"
    name = f"[{host}]" if ":" in host else host
    return f"{'https' if https else 'http'}://{name}:{port}"
