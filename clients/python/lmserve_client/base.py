"""What both clients are made of but for their input and output: addresses, options, retries."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator
from ssl import SSLContext
from typing import TYPE_CHECKING, Any, Callable, TypeVar

import httpx2

from lmserve_client.calls import Call
from lmserve_client.errors import (
    APIConnectionError,
    APIError,
    APITimeoutError,
    status_error,
    told_error,
)
from lmserve_client.parsing import parse_object
from lmserve_client.types import JSONObject

if TYPE_CHECKING:
    from typing_extensions import Concatenate, ParamSpec

    P = ParamSpec("P")

C = TypeVar("C")
R = TypeVar("R")
T = TypeVar("T")

USER_AGENT = "lmserve-client/0.1.0"
FIRST_RETRY_S = 0.25
OVERLOADED = (429, 503)


class Client:
    """The addresses and the key are plain attributes, read at each call: programs change them."""

    def __init__(
        self,
        api_server_url: str,
        api_key: str | None = None,
        *,
        connect_timeout_s: float | None = 10.0,
        read_timeout_s: float | None = 600.0,
        max_retries: int = 2,
        max_retry_after_s: float = 0.0,
        verify: bool | SSLContext = True,
        **kwargs: Any,
    ):
        """`read_timeout_s`: the longest silence between bytes; an answer that is not streamed
        is silent until it is whole. None: no limit. `max_retries`: connections tried again,
        nothing having been sent. `max_retry_after_s`: a server that says with 429 or 503 when
        to come back is obeyed when it says no more than this. `verify`: False, or a context of
        your own, for certificates that nobody vouches for. LMDeploy's client takes any other
        keyword and ignores it; so does this one, with a warning."""
        if kwargs:
            warnings.warn(f"{type(self).__name__} ignores {', '.join(kwargs)}", stacklevel=2)
        base_url = api_server_url.rstrip("/")
        self.api_server_url = api_server_url
        self.chat_intractive_v1_url: str = f"{base_url}/v1/chat/interactive"
        self.chat_completions_v1_url: str = f"{base_url}/v1/chat/completions"
        self.completions_v1_url: str = f"{base_url}/v1/completions"
        self.models_v1_url: str = f"{base_url}/v1/models"
        self.encode_v1_url: str = f"{base_url}/v1/encode"
        self.api_key = api_key
        self.headers: dict[str, str] = {"content-type": "application/json"}
        if api_key is not None:
            self.headers["Authorization"] = f"Bearer {api_key}"
        self._available_models: list[str] | None = None
        self._max_retries = max_retries
        self._max_retry_after_s = max_retry_after_s
        self._http_options: dict[str, Any] = {
            "timeout": httpx2.Timeout(read_timeout_s, connect=connect_timeout_s),
            # as many calls at once as the program makes: the server has the limits
            "limits": httpx2.Limits(max_connections=None, max_keepalive_connections=20),
            "headers": {"user-agent": USER_AGENT},
            "follow_redirects": True,
            "verify": verify,
        }

    def _request(self, call: Call[Any]) -> dict[str, Any]:
        """Arguments of the HTTP client's `build_request`."""
        method = "GET" if call.payload is None else "POST"
        url = getattr(self, call.url)
        return {"method": method, "url": url, "headers": self.headers, "json": call.payload}

    def _delays(self) -> Iterator[float]:
        """How long to wait before each further attempt."""
        for attempt in range(self._max_retries):
            yield FIRST_RETRY_S * 2**attempt

    def _after_failure(self, error: httpx2.RequestError, delays: Iterator[float]) -> float:
        """How long to wait before the next attempt; raises where there is none. Only what was
        not sent is sent again."""
        if isinstance(error, (httpx2.ConnectError, httpx2.ConnectTimeout)):
            for delay_s in delays:
                return delay_s
        raise connection_error(error) from error

    def _after_refusal(self, response: httpx2.Response, delays: Iterator[float]) -> float:
        """The same, for a response that was read and is no success. Such a refusal, too, is from
        before anything ran."""
        error = status_error(response.status_code, response.content, response.headers)
        wait_s = error.retry_after_s
        if error.status in OVERLOADED and wait_s is not None and wait_s <= self._max_retry_after_s:
            for delay_s in delays:
                return max(wait_s, delay_s)
        raise error


def takes(
    build: Callable[P, Call[T]],
) -> Callable[[Callable[[C, Call[T]], R]], Callable[Concatenate[C, P], R]]:
    """Makes a method that takes a call into one that takes what `build` makes such calls of."""

    def decorate(method: Callable[[C, Call[T]], R]) -> Callable[Concatenate[C, P], R]:
        def verb(self: C, /, *args: P.args, **kwargs: P.kwargs) -> R:
            return method(self, build(*args, **kwargs))

        shown = inspect.signature(build)
        this = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        result = inspect.signature(method).return_annotation
        verb.__signature__ = shown.replace(  # type: ignore[attr-defined]
            parameters=[this, *shown.parameters.values()], return_annotation=result
        )
        verb.__name__, verb.__qualname__ = method.__name__, method.__qualname__
        verb.__module__, verb.__doc__ = method.__module__, build.__doc__
        return verb

    return decorate


def connection_error(error: httpx2.RequestError) -> APIError:
    reason = str(error) or type(error).__name__
    if isinstance(error, httpx2.TimeoutException):
        return APITimeoutError(f"the server took too long ({type(error).__name__})")
    return APIConnectionError(f"no connection to the server, or it broke: {reason}")


def read_whole(call: Call[T], content: bytes) -> T:
    return read_item(call, parse_object(content))


def read_item(call: Call[T], item: JSONObject) -> T:
    error = told_error(item, call.stream)
    if error is not None:
        raise error
    return call.read(item)
