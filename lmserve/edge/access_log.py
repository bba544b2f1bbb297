"""One line a request, at its end."""

from __future__ import annotations

import logging

from aiohttp import web

from lmserve.edge.keyring import KEYRING, OWNER
from lmserve.edge.middlewares import REQUEST_ID, path_of

access = logging.getLogger("lmserve.access")


def log_ended(request: web.Request, status: int | None, duration_s: float) -> None:
    """`status` None: the client left before its answer."""
    if not access.isEnabledFor(logging.INFO):
        return
    told, duration_ms = status or "gone", round(duration_s * 1000, 1)
    fields: dict[str, str | int | float] = {
        "method": request.method,
        "path": path_of(request),
        "status": told,
        "duration_ms": duration_ms,
    }
    if owner := request.get(OWNER):
        fields["key"] = request.app[KEYRING].name_of(owner)
    access.info(
        "%s %s %s %.1f ms %s",
        request.method,
        fields["path"],
        told,
        duration_ms,
        request[REQUEST_ID],
        extra={"fields": fields},
    )
