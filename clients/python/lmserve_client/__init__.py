"""Clients of lmserve, and of any server that has LMDeploy's REST API.

`APIClient` takes the place of LMDeploy's own; `AsyncAPIClient` has the same verbs for asyncio.
"""

from lmserve_client.api_client import APIClient
from lmserve_client.async_client import AsyncAPIClient
from lmserve_client.errors import (
    APIConnectionError,
    APIError,
    APIResponseError,
    APIStatusError,
    APIStreamError,
    APITimeoutError,
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
    "AsyncAPIClient",
    "ChatChoice",
    "ChatCompletion",
    "ChatMessage",
    "ChatPart",
    "Completion",
    "CompletionChoice",
    "Encoding",
    "EncodingBatch",
    "InteractiveAnswer",
    "Usage",
]
