"""Headers on their way through: all but those that are between two neighbours only."""

from __future__ import annotations

from aiohttp import web
from multidict import CIMultiDict, CIMultiDictProxy

_HOP_BY_HOP = frozenset(
    (
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    )
)
# The client of ours that sends the request writes its own.
_OURS = _HOP_BY_HOP | {"host", "content-length", "expect"}


def to_node(request: web.Request, request_id: str, via: str) -> CIMultiDict[str]:
    headers = _without(request.headers, _OURS)
    seen = headers.popall("X-Forwarded-For", [])
    headers["X-Forwarded-For"] = ", ".join((*seen, request.remote or "unknown"))
    headers.setdefault("X-Forwarded-Proto", request.scheme)
    headers.setdefault("X-Forwarded-Host", request.headers.get("Host", ""))
    headers["X-Request-Id"] = request_id
    headers.add("Via", f"1.1 {via}")
    return headers


def has_passed(request: web.Request, via: str) -> bool:
    """Whether this request was sent by the one of this name, who is among its own nodes."""
    return any(each.split()[-1:] == [via] for each in _tokens(request.headers, "Via"))


def to_client(headers: CIMultiDictProxy[str]) -> CIMultiDict[str]:
    return _without(headers, _HOP_BY_HOP)


def upgrade_of(headers: CIMultiDictProxy[str]) -> str | None:
    """The protocol the client asks to change to, where it can be tunnelled."""
    if "upgrade" not in _tokens(headers, "Connection"):
        return None
    wanted = headers.get("Upgrade", "").strip()
    return wanted if wanted.lower() in ("websocket", "tcp") else None  # what aiohttp lets through


def _without(headers: CIMultiDictProxy[str], names: frozenset[str]) -> CIMultiDict[str]:
    dropped = names | _tokens(headers, "Connection")
    kept = CIMultiDict[str]()
    for name, value in headers.items():
        if name.lower() not in dropped:
            kept.add(name, value)
    return kept


def _tokens(headers: CIMultiDictProxy[str], name: str) -> set[str]:
    lines = headers.getall(name, [])
    return {token.strip().lower() for line in lines for token in line.split(",")}
