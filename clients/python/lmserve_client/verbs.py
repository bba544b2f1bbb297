"""What may be asked beside answers: each as a frame of the WebSocket and as a call of REST."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from lmserve_client.types import JSONObject


@dataclass(frozen=True)
class Verb:
    frame: str  # the `type` of the WebSocket's
    method: str
    path: str
    # asked again, unless it is known to have been done: what is told of a second time
    repeats: bool = True

    def rest(self, fields: JSONObject) -> tuple[str, JSONObject]:
        """Its path, and the fields that are left for the query or the body."""
        rest = dict(fields)
        path = self.path
        for name in ("session", "response_id"):
            if "{" + name + "}" in path:
                path = path.replace("{" + name + "}", quote(str(rest.pop(name)), safe=""))
        return path, rest


_SESSION = "/v1/sessions/{session}"
_RESPONSE = "/v1/responses/{response_id}"

CREATE = Verb("session.create", "POST", "/v1/sessions")
LIST = Verb("session.list", "GET", "/v1/sessions")
GET = Verb("session.get", "GET", _SESSION)
UPDATE = Verb("session.update", "POST", _SESSION)
DELETE = Verb("session.delete", "DELETE", _SESSION)
MESSAGES = Verb("session.messages", "GET", f"{_SESSION}/messages")
APPEND = Verb("session.append", "POST", f"{_SESSION}/messages", repeats=False)
FORK = Verb("session.fork", "POST", f"{_SESSION}/fork")
EXPORT = Verb("session.export", "GET", f"{_SESSION}/export")
IMPORT = Verb("session.import", "POST", "/v1/sessions/import")
DRAFT = Verb("session.draft", "POST", f"{_SESSION}/draft")
CANCEL_SESSION = Verb("session.cancel", "POST", f"{_SESSION}/cancel")
CANCEL = Verb("session.cancel", "POST", f"{_RESPONSE}/cancel")
CHANGE = Verb("session.update", "POST", _RESPONSE)


def given(fields: Iterable[tuple[str, Any]] | JSONObject) -> JSONObject:
    """Those fields that are not None."""
    return {name: value for name, value in dict(fields).items() if value is not None}
