"""Other web pages: what they have their visitors' browsers do here."""

from __future__ import annotations

from aiohttp import web


def crosses(request: web.Request) -> bool:
    """Whether another site's page asks. Only browsers send this header, and no page can change
    it."""
    return request.headers.get("Sec-Fetch-Site") == "cross-site"
