"""API keys: where some are set, every call must bring one that may do what it asks for, but for the
routes marked open."""

from __future__ import annotations

import hmac
import logging
import time
from collections.abc import Iterable
from dataclasses import replace

from aiohttp import hdrs, web

from lmserve.edge.key_file import SCOPES, Key, Scope, digest_of, is_exposed, read_keys
from lmserve.edge.middlewares import Handler
from lmserve.edge.reload import Reloads
from lmserve.errors import Forbidden, Unauthorized
from lmserve.types import KeyLimits

OPEN = web.AppKey("open", set[web.AbstractRoute])  # those that ask for no API key
SCOPE = web.AppKey("scope", dict[web.AbstractRoute, Scope])  # of those that ask for more than "use"
OWNER = web.RequestKey("owner", str)  # whose key the call brought; "" where no keys are set

logger = logging.getLogger(__name__)


class Keyring:
    """The keys' digests: a key itself is never compared, logged or told.

    `keys` may do everything, until there are others for that: `admin_keys`, or those of `key_file`.
    `limits` are those of a key that has none of its own.
    """

    def __init__(
        self,
        keys: Iterable[str],
        *,
        admin_keys: Iterable[str] = (),
        key_file: str | None = None,
        limits: KeyLimits | None = None,
    ):
        self._limits = limits or KeyLimits()
        self.key_file = key_file
        admins = _named("admin", admin_keys, SCOPES)
        plain = _named("api", keys, ("use",) if admins or key_file is not None else SCOPES)
        self._given = {key.digest: key for key in (*plain, *admins)}
        self._keys: tuple[Key, ...] = ()
        self._by_owner: dict[str, Key] = {}
        self._hold({})

    @property
    def asks(self) -> bool:
        """Whether every call must bring a key; with an empty file, that none has."""
        return bool(self._given) or self.key_file is not None

    def read(self) -> None:
        """Takes the keys that the file has now for those it had. Raises SetupError, and then they
        stay. Not for the loop."""
        if self.key_file is None:
            return
        found = {key.digest: key for key in read_keys(self.key_file)}
        if is_exposed(self.key_file):
            logger.warning("%s can be read by others of this machine: chmod 600 it", self.key_file)
        self._hold(found)

    def _hold(self, found: dict[bytes, Key]) -> None:
        keys = tuple((self._given | found).values())
        self._by_owner = {key.owner: key for key in keys}
        self._keys = keys

    # --- who asks ---------------------------------------------------------------------

    def owner(self, request: web.Request) -> str | None:
        """A short name for the key this request brings; None where it brings none of ours."""
        return self.owner_of(*brought(request))

    def owner_of(self, *keys: str) -> str | None:
        """As `owner`, for keys that came in another way."""
        owner = None
        for digest in map(digest_of, keys):
            for known in self._keys:  # all of them: the time taken tells nothing
                if hmac.compare_digest(digest, known.digest) and time.time() < known.expires_s:
                    owner = known.owner
        return owner

    def knows(self, owner: str) -> bool:
        """Whether this owner's key still stands."""
        key = self._by_owner.get(owner)
        return not self.asks or (key is not None and time.time() < key.expires_s)

    def check(self, owner: str, scope: Scope) -> None:
        """Raises Forbidden where this owner's key may not do it."""
        if not self.asks:
            return
        key = self._by_owner.get(owner)
        if key is None or not key.may(scope):
            raise Forbidden(
                f"the API key may not do this: it takes one with the scope {scope!r}; ask whoever "
                "runs this server"
            )

    # --- of whoever asked -------------------------------------------------------------

    def name_of(self, owner: str) -> str:
        """For people; "" where no keys are set."""
        key = self._by_owner.get(owner)
        return owner[:8] if key is None else key.name

    def limits_of(self, owner: str) -> KeyLimits:
        """Its own; each it has not, as the settings have it. Where there is no key, none."""
        if not owner:
            return KeyLimits()
        key, most = self._by_owner.get(owner), self._limits
        if key is None:
            return most
        own = key.limits
        return replace(
            own,
            max_requests=own.max_requests or most.max_requests,
            requests_per_minute=own.requests_per_minute or most.requests_per_minute,
            tokens_per_minute=own.tokens_per_minute or most.tokens_per_minute,
        )

    @web.middleware
    async def guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Denies, unless the route is open or the key may do it. What no route has is denied too,
        and no byte of the body is read before."""
        owner = self.owner(request) if self.asks else ""
        request[OWNER] = owner or ""
        route = request.match_info.route
        if route not in request.app[OPEN]:
            if owner is None:
                raise Unauthorized(_remedy(request))
            self.check(owner, request.app[SCOPE].get(route, "use"))
        return await handler(request)


KEYRING = web.AppKey("keyring", Keyring)


def reloads_of(keyring: Keyring) -> Reloads:
    """Its file, to be read again when it changes."""
    reloads = Reloads()
    if keyring.key_file is not None:
        reloads.add(f"the key file {keyring.key_file}", (keyring.key_file,), keyring.read)
    return reloads


def brought(request: web.Request) -> list[str]:
    """The keys of a request, as OpenAI's clients send them and as Anthropic's do."""
    scheme, _, key = request.headers.get(hdrs.AUTHORIZATION, "").partition(" ")
    bearer = key.strip() if scheme.lower() == "bearer" else ""
    return [key for key in (bearer, request.headers.get("X-Api-Key", "")) if key]


def _named(kind: str, keys: Iterable[str], scopes: Iterable[Scope]) -> list[Key]:
    may = frozenset(scopes)
    return [
        Key(f"{kind}-{number}", digest_of(key), may, KeyLimits())
        for number, key in enumerate(keys, 1)
    ]


def _remedy(request: web.Request) -> str:
    if brought(request):
        return "the API key is not known here: ask whoever runs this server for one"
    return "this server asks for an API key: send the header `Authorization: Bearer KEY`"
