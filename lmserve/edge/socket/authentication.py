"""Who opens a connection: a key in a header, in a subprotocol, or in the first event."""

from __future__ import annotations

import base64
import binascii
from contextlib import suppress

from aiohttp import WSCloseCode, WSMsgType, hdrs, web

from lmserve.edge.keyring import Keyring, brought
from lmserve.errors import InvalidField, Unauthorized
from lmserve.protocol.decode import convert, parse_object
from lmserve.protocol.socket import KEY_SUBPROTOCOL, SUBPROTOCOL, Authenticate

PATIENCE_S = 10.0  # for the first event, where that must bring the key


def offered(request: web.Request) -> list[str]:
    """The subprotocols that the client can speak. Raises InvalidField where it can none of ours:
    a browser would give up an answer that names none."""
    given = ",".join(request.headers.getall(hdrs.SEC_WEBSOCKET_PROTOCOL, ()))
    protocols = [each.strip() for each in given.split(",") if each.strip()]
    if protocols and SUBPROTOCOL not in protocols:
        raise InvalidField(
            f"the subprotocols offered do not name {SUBPROTOCOL!r}: offer it, beside "
            f"'{KEY_SUBPROTOCOL}<base64url of the API key>', or none",
            param=str(hdrs.SEC_WEBSOCKET_PROTOCOL),
        )
    return protocols


def by_headers(request: web.Request, keyring: Keyring) -> str | None:
    """The owner, by the headers; None: the first event must tell. Raises Unauthorized, for a key
    that is wrong; Forbidden, for one that may not use the model."""
    if not keyring.asks:
        return ""
    if not brought(request):
        return None
    return _allowed(keyring.owner(request), keyring)


def by_subprotocol(protocols: list[str], keyring: Keyring) -> str | None:
    """As `by_headers`."""
    keys = keys_of(protocols)
    if not keys:
        return None
    return _allowed(keyring.owner_of(*keys), keyring)


def keys_of(protocols: list[str]) -> list[str]:
    """The keys that these subprotocols bring. Raises Unauthorized for what cannot be one."""
    return [_key(each) for each in protocols if each.startswith(KEY_SUBPROTOCOL)]


async def by_first_event(
    socket: web.WebSocketResponse[bool], keyring: Keyring
) -> tuple[str, Authenticate] | None:
    """The owner, and the event; None: the client left. Raises RequestError; TimeoutError
    where nothing came in time."""
    message = await socket.receive(PATIENCE_S)
    if message.type in (WSMsgType.CLOSE, WSMsgType.CLOSING, WSMsgType.CLOSED, WSMsgType.ERROR):
        return None
    if message.type is not WSMsgType.TEXT:
        raise first()
    parsed = parse_object(message.data, "the event")
    if parsed.get("type") != "session.authenticate":
        raise first()
    asked, _ = convert(parsed, Authenticate)
    return _allowed(keyring.owner_of(asked.api_key), keyring), asked


async def dismiss(socket: web.WebSocketResponse[bool]) -> None:
    """Ends a connection whose key is known no more."""
    with suppress(ConnectionResetError):
        await socket.close(
            code=WSCloseCode.POLICY_VIOLATION, message=b"the API key is no longer valid"
        )


def _key(protocol: str) -> str:
    text = protocol.removeprefix(KEY_SUBPROTOCOL)
    try:
        return base64.b64decode(
            text + "=" * (-len(text) % 4), altchars="-_", validate=True
        ).decode()
    except (binascii.Error, ValueError):
        raise Unauthorized(
            f"the subprotocol {KEY_SUBPROTOCOL}… does not end in base64url: encode the API key "
            "so, without padding"
        ) from None


def first() -> Unauthorized:
    return Unauthorized(
        'this server asks for an API key: send it first, as {"type": "session.authenticate", '
        '"api_key": KEY}, or in the header `Authorization: Bearer KEY`'
    )


def _allowed(owner: str | None, keyring: Keyring) -> str:
    if owner is None:
        raise Unauthorized("the API key is not known here: ask whoever runs this server for one")
    keyring.check(owner, "use")
    return owner
