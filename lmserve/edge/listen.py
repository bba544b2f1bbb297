"""A port to listen on, the URL of it, and what is logged of those who speak no HTTP there."""

from __future__ import annotations

import errno
import logging
import socket

from aiohttp.http_exceptions import HttpProcessingError

from lmserve.errors import SetupError

WILDCARDS = ("0.0.0.0", "::")  # every address of this machine


class Strangers(logging.Filter):
    """What is no HTTP is the client's mistake, told to it as 400: one line here, no traceback.
    One that left before its answer is in the access log."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, ConnectionResetError):
            return False
        if isinstance(error, HttpProcessingError):
            problem = str(error.message).partition("\n")[0]
            record.msg, record.args = f"{record.getMessage()}: not HTTP: {problem}", ()
            record.exc_info = None
            record.levelno, record.levelname = logging.INFO, "INFO"
        return True


def wire_logger() -> logging.Logger:
    """aiohttp's own, less what any stranger could fill the log with."""
    logger = logging.getLogger("aiohttp.server")
    if not any(isinstance(each, Strangers) for each in logger.filters):
        logger.addFilter(Strangers())
    return logger


def bind(host: str, port: int) -> socket.socket:
    """A bound socket. Raises SetupError, one line with the remedy."""
    if not 0 <= port < 2**16:  # getaddrinfo would wrap it
        raise SetupError(f"port {port} is not between 0 and 65535: give another --server-port")
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (socket.gaierror, UnicodeError):
        raise SetupError(
            f"{host!r} port {port} is no address to listen on: try --server-name 127.0.0.1"
        ) from None
    listener = socket.socket(family, kind, proto)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise SetupError(_why_not(host, port, error)) from None
    return listener


def _why_not(host: str, port: int, error: OSError) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return f"port {port} of {host} is in use: give another with --server-port, or 0"
        case errno.EACCES:
            return f"port {port} needs more rights: give one above 1023 with --server-port"
        case errno.EADDRNOTAVAIL:
            return f"{host} is not an address of this machine: try --server-name 127.0.0.1"
        case _:
            return f"cannot listen on {host} port {port}: {error}"


def url_of(listener: socket.socket, *, https: bool = False) -> str:
    """What to open in a browser of this machine."""
    host, port = listener.getsockname()[:2]
    if host in WILDCARDS:  # a browser needs one
        host = "127.0.0.1"
    name = f"[{host}]" if ":" in host else host
    return f"{'https' if https else 'http'}://{name}:{port}"
