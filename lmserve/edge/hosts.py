"""The names that calls are for: a page of another site can have its own name lead to this address
("DNS rebinding"), and its visitors' browsers then take this server for that site. What they cannot
change is the name in the Host header."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable

from aiohttp import hdrs, web

from lmserve.edge.middlewares import Handler
from lmserve.errors import WrongHost

_NAME = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*")


class Hosts:
    """With keys, a page that has none gets nothing anyway; and a server with an address that others
    reach is called by names nobody here knows. So unless names are given, only a server for this
    machine alone, without keys, looks at them."""

    def __init__(self, server_name: str, allowed: Iterable[str], *, has_keys: bool):
        self._names = {_bare(name.lower()) for name in (*allowed, server_name)}
        given = bool(set(allowed))
        self.looks = "*" not in self._names and (
            given or (not has_keys and is_loopback(server_name))
        )

    @web.middleware
    async def guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        self.check({request.host, *request.headers.getall(hdrs.HOST, ())})
        return await handler(request)

    def check(self, names: Iterable[str]) -> None:
        """As Host headers have them. Raises WrongHost."""
        for named in names if self.looks else ():
            if not self.is_ours(named):
                raise WrongHost(
                    f"this server is not called {named[:100]!r}: have it started with that "
                    "name in --allowed-hosts, or have the proxy before it send another Host"
                )

    def is_ours(self, named: str) -> bool:
        """`named`: as a Host header has it. An address was looked up nowhere; a name without a dot
        is of this network, and nobody outside of it can have it lead here."""
        named = named.strip().lower()
        host = _bare(named if _is_address(named) else re.sub(r":\d*$", "", named))
        if not host or host in self._names or _is_address(host):
            return True
        if not _NAME.fullmatch(host):
            return False
        return "." not in host or host.endswith(".localhost")


def is_loopback(server_name: str) -> bool:
    try:
        return ipaddress.ip_address(server_name).is_loopback
    except ValueError:
        return server_name.lower() == "localhost"


def _bare(host: str) -> str:
    return host.removesuffix(".")


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return True
