"""Headers that tell a client what its API key may still send, under OpenAI's names."""

from __future__ import annotations

from aiohttp import web

from lmserve.edge.keyring import OWNER
from lmserve.server.keys import SERVICE


async def stamp(request: web.Request, response: web.StreamResponse) -> None:
    """Signal: answers to a key that has such a limit carry them."""
    owner = request.get(OWNER)
    if not owner:
        return
    for rate in request.app[SERVICE].rates(owner):
        for what, value in (
            ("limit", str(rate.limit)),
            ("remaining", str(rate.remaining)),
            ("reset", f"{rate.reset_s:.3f}s"),
        ):
            response.headers[f"x-ratelimit-{what}-{rate.name}"] = value
