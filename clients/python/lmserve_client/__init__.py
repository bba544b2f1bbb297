"""Clients of lmserve, and of any server that has LMDeploy's REST API.

`Lmserve` has conversations that the server keeps. `APIClient` takes the place of LMDeploy's own;
`AsyncAPIClient` has the same verbs for asyncio.
"""

from lmserve_client.answer import Answer
from lmserve_client.api_client import APIClient
from lmserve_client.async_client import AsyncAPIClient
from lmserve_client.draft import Draft
from lmserve_client.errors import (
    APIConnectionError,
    APIError,
    APIResponseError,
    APIStatusError,
    APIStreamError,
    APITimeoutError,
)
from lmserve_client.lmserve import Lmserve
from lmserve_client.objects import (
    AnswerInterrupted,
    Event,
    Message,
    Piece,
    Prefilled,
    Response,
    ResponseUsage,
    Session,
    SessionPage,
    Steered,
    SteerFailed,
)
from lmserve_client.types import (
    ChatChoice,
    ChatCompletion,
    ChatMessage,
    ChatPart,
    Completion,
    CompletionChoice,
    Encoding,
    EncodingBatch,
    InteractiveAnswer,
    Usage,
)

__version__ = "0.1.0"

__all__ = [
    "APIClient",
    "APIConnectionError",
    "APIError",
    "APIResponseError",
    "APIStatusError",
    "APIStreamError",
    "APITimeoutError",
    "Answer",
    "AnswerInterrupted",
    "AsyncAPIClient",
    "ChatChoice",
    "ChatCompletion",
    "ChatMessage",
    "ChatPart",
    "Completion",
    "CompletionChoice",
    "Draft",
    "Encoding",
    "EncodingBatch",
    "Event",
    "InteractiveAnswer",
    "Lmserve",
    "Message",
    "Piece",
    "Prefilled",
    "Response",
    "ResponseUsage",
    "Session",
    "SessionPage",
    "SteerFailed",
    "Steered",
    "Usage",
]
