"""Which other web pages may call (Cross-Origin Resource Sharing): none, unless settings say so."""

from __future__ import annotations

import re

from aiohttp import hdrs, web

from lmserve.edge.cross_site import ACTING, crosses
from lmserve.edge.middlewares import Handler
from lmserve.errors import CrossSite, SetupError
from lmserve.settings import ServerSettings

SAFE_HEADERS = ("Accept", "Accept-Language", "Content-Language", "Content-Type")
EXPOSED_HEADERS = (
    "X-Request-Id, request-id, X-Session-Id, X-Stream-Id, X-Cached-Tokens, Retry-After, "
    "WWW-Authenticate, x-ratelimit-limit-requests, x-ratelimit-remaining-requests, "
    "x-ratelimit-reset-requests, x-ratelimit-limit-tokens, x-ratelimit-remaining-tokens, "
    "x-ratelimit-reset-tokens"
)
MAX_AGE_S = 600  # a browser keeps what a preflight told it

_ORIGIN = re.compile(r"\*|null|[a-z][a-z0-9+.-]*://[^\s/*?#]+")
_TOKENS = re.compile(r"[\w!#$%&'*+.^`|~-]+(\s*,\s*[\w!#$%&'*+.^`|~-]+)*", re.ASCII)


class Cors:
    """Answers preflights and marks real responses. Raises SetupError for origins that no browser
    would send, and for any origin with credentials: that lets every page use its visitors' own."""

    def __init__(self, settings: ServerSettings):
        self._origins = {_origin(text) for text in settings.allow_origins}
        self._any_origin = "*" in self._origins
        self._methods = settings.allow_methods
        self._headers = settings.allow_headers
        self._credentials = settings.allow_credentials
        if self._any_origin and self._credentials:
            raise SetupError(
                "--allow-credentials with --allow-origins '*' lets any web page act for whoever "
                "looks at it: name the origins, or leave --allow-credentials out"
            )

    @web.middleware
    async def preflight(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Tells a browser, which sends no key with this question, what a page may send. `stamp`
        adds the origin."""
        method = request.headers.get(hdrs.ACCESS_CONTROL_REQUEST_METHOD)
        if request.method != hdrs.METH_OPTIONS or method is None or not self._allows(request):
            return await handler(request)
        response = web.Response(status=204)
        response.headers[hdrs.ACCESS_CONTROL_ALLOW_METHODS] = _granted(self._methods, (), method)
        wanted = request.headers.get(hdrs.ACCESS_CONTROL_REQUEST_HEADERS, "")
        if headers := _granted(self._headers, SAFE_HEADERS, wanted):
            response.headers[hdrs.ACCESS_CONTROL_ALLOW_HEADERS] = headers
        response.headers[hdrs.ACCESS_CONTROL_MAX_AGE] = str(MAX_AGE_S)
        response.headers[hdrs.VARY] = (
            f"{hdrs.ACCESS_CONTROL_REQUEST_METHOD}, {hdrs.ACCESS_CONTROL_REQUEST_HEADERS}"
        )
        return response

    @web.middleware
    async def guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Refuses what another web page has its visitor's browser do. The page could not read the
        answer; here nothing is done, either."""
        acts = request.match_info.route in request.app[ACTING]
        if acts and crosses(request) and not self._allows(request):
            raise CrossSite(
                "another web page may not call this: have the server started with its origin in "
                "--allow-origins"
            )
        return await handler(request)

    async def stamp(self, request: web.Request, response: web.StreamResponse) -> None:
        """Signal: every response, an error or a stream too, says which page may read it."""
        if self._origins and not self._any_origin:
            response.headers.add(hdrs.VARY, hdrs.ORIGIN)
        if not self._allows(request):
            return
        origin = "*" if self._any_origin else request.headers[hdrs.ORIGIN]
        response.headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = origin
        response.headers[hdrs.ACCESS_CONTROL_EXPOSE_HEADERS] = EXPOSED_HEADERS
        if self._credentials:
            response.headers[hdrs.ACCESS_CONTROL_ALLOW_CREDENTIALS] = "true"

    def _allows(self, request: web.Request) -> bool:
        origin = request.headers.get(hdrs.ORIGIN)
        return origin is not None and (self._any_origin or origin in self._origins)


def _origin(text: str) -> str:
    """As a browser writes it: lower case, nothing after the port."""
    origin = text.lower().rstrip("/")
    if not _ORIGIN.fullmatch(origin):
        raise SetupError(
            f"--allow-origins {text}: not an origin; write it as http://host:port, or * for any"
        )
    return origin


def _granted(allowed: tuple[str, ...], always: tuple[str, ...], wanted: str) -> str:
    """The list to send. For `*` it is what was asked for: a literal `*` would not cover the
    Authorization header, nor anything once credentials are sent."""
    if "*" in allowed:
        return wanted if _TOKENS.fullmatch(wanted) else ""
    return ", ".join(dict.fromkeys((*always, *allowed)))
