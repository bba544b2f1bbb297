"""`POST /v1/sessions/{id}/turns`: an answer within a session, anywhere in its tree."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from lmserve.protocol.responses.requests import ResponseFields
from lmserve.protocol.responses.settings import ResponseConversation
from lmserve.protocol.unserved import UNSERVED


class TurnBody(ResponseFields, kw_only=True):
    """What is said, and where in the session's tree."""

    previous_response_id: Annotated[
        str | None, Meta(description="Not here: `after` says it.", extra={UNSERVED: ()})
    ] = None
    conversation: Annotated[
        str | ResponseConversation | None,
        Meta(description="Not here: the path says it.", extra={UNSERVED: ()}),
    ] = None
    store: Annotated[
        bool | None, Meta(description="Turns are always kept.", extra={UNSERVED: (True,)})
    ] = None
