"""Other web pages: what they have their visitors' browsers do here."""

from __future__ import annotations

from urllib.parse import urlsplit

from aiohttp import hdrs, web

ACTING = web.AppKey("acting", set[web.AbstractRoute])  # routes that do more than tell

_OWN = ("same-origin", "none")  # the server's own page, or the visitor alone


def crosses(request: web.Request) -> bool:
    """Whether another site's page asks, as far as can be told. Only browsers send these headers,
    and no page can change them."""
    site = request.headers.get("Sec-Fetch-Site")
    if site is not None and site not in _OWN:
        return True
    if site is not None and not _upgrades(request):
        return False
    return foreign(request) or (site is None and _may_be_linked(request))


def foreign(request: web.Request) -> bool:
    """Whether the page's origin is not this server. Its scheme is not looked at: TLS may end
    before."""
    return _is_elsewhere(request, hdrs.ORIGIN)


def _is_elsewhere(request: web.Request, header: str) -> bool:
    """A proxy tells by which name it was called; a page cannot send that header unasked."""
    page = request.headers.get(header)
    if page is None:
        return False
    names = f"{request.host},{request.headers.get('X-Forwarded-Host', '')}".lower().split(",")
    try:
        host = urlsplit(page.lower()).netloc
    except ValueError:
        return True
    return not host or host not in map(str.strip, names)


def _may_be_linked(request: web.Request) -> bool:
    """Over plain HTTP, a browser that fetches another page's image tells nothing of that page."""
    return (
        request.method == hdrs.METH_GET
        and not _upgrades(request)
        and "Mozilla/" in request.headers.get(hdrs.USER_AGENT, "")
        and (hdrs.REFERER not in request.headers or _is_elsewhere(request, hdrs.REFERER))
    )


def _upgrades(request: web.Request) -> bool:
    """To a WebSocket: browsers let any page open one, and may not say whose it is but for its
    origin."""
    return request.headers.get(hdrs.UPGRADE, "").strip().lower() == "websocket"
