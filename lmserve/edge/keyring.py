"""API keys: where some are set, every call must bring one, but for the routes marked open."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable

from aiohttp import hdrs, web

from lmserve.edge.middlewares import Handler
from lmserve.errors import Unauthorized

OPEN = web.AppKey("open", set[web.AbstractRoute])  # those that ask for no API key
OWNER = web.RequestKey("owner", str)  # whose key the call brought; "" where no keys are set


class Keyring:
    """The keys' digests: a key itself is never compared, logged or told."""

    def __init__(self, keys: Iterable[str]):
        self._digests = [_digest(key) for key in keys]

    @property
    def asks(self) -> bool:
        """Whether every call must bring a key."""
        return bool(self._digests)

    def owner(self, request: web.Request) -> str | None:
        """A short name for the key this request brings; None where it brings none of ours."""
        return self.owner_of(*brought(request))

    def owner_of(self, *keys: str) -> str | None:
        """As `owner`, for keys that came in another way."""
        owner = None
        for digest in map(_digest, keys):
            for known in self._digests:  # all of them: the time taken tells nothing
                if hmac.compare_digest(digest, known):
                    owner = known.hex()[:16]
        return owner

    @web.middleware
    async def guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Denies, unless the route is open or the key is known. What no route has is denied too,
        and no byte of the body is read before."""
        owner = self.owner(request) if self._digests else ""
        if owner is None and request.match_info.route not in request.app[OPEN]:
            raise Unauthorized(_remedy(request))
        request[OWNER] = owner or ""
        return await handler(request)


KEYRING = web.AppKey("keyring", Keyring)


def brought(request: web.Request) -> list[str]:
    """The keys of a request, as OpenAI's clients send them and as Anthropic's do."""
    scheme, _, key = request.headers.get(hdrs.AUTHORIZATION, "").partition(" ")
    bearer = key.strip() if scheme.lower() == "bearer" else ""
    return [key for key in (bearer, request.headers.get("X-Api-Key", "")) if key]


def _remedy(request: web.Request) -> str:
    if brought(request):
        return "the API key is not known here: ask whoever runs this server for one"
    return "this server asks for an API key: send the header `Authorization: Bearer KEY`"


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
