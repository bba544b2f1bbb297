"""Other web pages: what they have their visitors' browsers do here."""

from __future__ import annotations

from urllib.parse import urlsplit

from aiohttp import hdrs, web


def crosses(request: web.Request) -> bool:
    """Whether another site's page asks. Only browsers send these headers, and no page can change
    them."""
    if request.headers.get("Sec-Fetch-Site") == "cross-site":
        return True
    return _upgrades(request) and foreign(request)


def _upgrades(request: web.Request) -> bool:
    """To a WebSocket: browsers let any page open one, and may not say whose it is but for its
    origin."""
    return request.headers.get(hdrs.UPGRADE, "").strip().lower() == "websocket"


def foreign(request: web.Request) -> bool:
    """Whether the page's origin is not this server. Its scheme is not looked at: TLS may end
    before."""
    origin = request.headers.get(hdrs.ORIGIN)
    if origin is None:
        return False
    try:
        return urlsplit(origin.lower()).netloc != request.host.lower()
    except ValueError:
        return True
