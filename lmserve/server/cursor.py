"""Where a reader goes on: the number of the last event that it has."""

from __future__ import annotations

import re

from aiohttp import web

from lmserve.errors import InvalidField

QUERY = "starting_after"
HEADER = "Last-Event-ID"

_NUMBER = re.compile(r"-1|[0-9]{1,15}")


def cursor(request: web.Request) -> int:
    """From the query or, where it is not there, the header that browsers send; -1: from the
    first event on. Raises InvalidField."""
    given, param = request.query.get(QUERY), QUERY
    if given is None:
        given, param = request.headers.get(HEADER, ""), HEADER
        if not given:
            return -1
    if not _NUMBER.fullmatch(given):
        raise InvalidField(
            f"{param} is {given[:30]!r}: give the number of the last event that you have, or "
            "leave it out",
            param=param,
        )
    return int(given)
