"""Everything the clients raise.

APIError
├── APIConnectionError      no connection, or it broke; nothing is known of the request
│   └── APITimeoutError     no connection, or no byte, for as long as was allowed
├── APIStatusError          the server refused: `status`, `message`, `param`, `code`, `type`
├── APIStreamError          the server failed in the middle of a streamed answer
├── APIResponseError        what came back is not this API
├── AnswerInterrupted       a kept answer was cut short by the server; it can be gone on with
└── SteerFailed             what was said in mid-answer could not be taken on
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


class APIError(Exception):
    """Base of all of them."""

    def __init__(self, message: str):
        super().__init__(message)
        self.message = message


class APIConnectionError(APIError):
    """No connection could be made, or it broke."""


class APITimeoutError(APIConnectionError):
    """No connection was made, or no byte came, in the time allowed."""


class APIResponseError(APIError):
    """What came back is not what this API answers."""


class _ServerError(APIError):
    """What the server says about a failure."""

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        type: str | None = None,
        body: Any = None,
    ):
        super().__init__(message)
        self.param = param  # the field at fault
        self.code = code
        self.type = type
        self.body = body  # as it came: decoded JSON, or text


class APIStatusError(_ServerError):
    """The server refused the call, or failed it before the answer began."""

    def __init__(
        self, status: int, message: str, *, retry_after_s: float | None = None, **said: Any
    ):
        super().__init__(message, **said)
        self.status = status
        self.retry_after_s = retry_after_s  # come back after this long

    def __str__(self) -> str:
        return f"{self.status}: {self.message}"


class APIStreamError(_ServerError):
    """The server failed in the middle of a streamed answer."""


def status_error(status: int, content: bytes, headers: Mapping[str, str]) -> APIStatusError:
    """Reads the body of any refusal: OpenAI's nested one, LMDeploy's flat one, FastAPI's."""
    try:
        body: Any = json.loads(content)
    except ValueError:
        body = content.decode(errors="replace")
    return APIStatusError(
        status,
        **_said(body),
        retry_after_s=_seconds(headers.get("retry-after")),
        body=body,
    )


def told_status(status: int, told: Mapping[str, Any] | bytes) -> APIStatusError:
    """The same, of an error event of a WebSocket."""
    if isinstance(told, bytes):
        return status_error(status, told, {})
    headers = (told.get("error") or {}).get("headers") or {}
    retry_after_s = _seconds(headers.get("Retry-After"))
    return APIStatusError(status, **_said(told), retry_after_s=retry_after_s, body=dict(told))


def told_error(item: Mapping[str, Any], streamed: bool) -> APIError | None:
    """The error that a line of a successful response tells, if it does.

    LMDeploy 0.2 refuses with status 200, and the real status in the body."""
    if item.get("object") != "error" and not isinstance(item.get("error"), Mapping):
        return None
    said: dict[str, Any] = {**_said(item), "body": dict(item)}
    status = item.get("code")
    if item.get("object") == "error" and isinstance(status, int) and not streamed:
        return APIStatusError(status, **said)
    return APIStreamError(**said)


def _said(body: Any) -> dict[str, Any]:
    """The keyword arguments of `_ServerError`."""
    if isinstance(body, Mapping):
        for key in ("error", "detail"):
            inner = body.get(key)
            if isinstance(inner, Mapping):
                return _said(inner)
            if key == "detail" and isinstance(inner, list) and inner:  # FastAPI's validation
                return _invalid(inner[0])
            if isinstance(inner, str):
                return {"message": inner}
        code = body.get("code")
        return {
            "message": str(body.get("message", body)),
            "param": body.get("param"),
            "code": None if code is None else str(code),
            "type": body.get("type"),
        }
    return {"message": str(body).strip()[:500] or "no reason given"}


def _invalid(problem: Any) -> dict[str, Any]:
    if not isinstance(problem, Mapping):
        return {"message": str(problem)}
    where = ".".join(str(name) for name in problem.get("loc", ()) if name != "body")
    message = str(problem.get("msg", problem))
    return {"message": f"{where}: {message}" if where else message, "param": where or None}


def _seconds(retry_after: str | None) -> float | None:
    """The header's seconds; its other form, a date, is not used by these servers."""
    try:
        return max(0.0, float(retry_after)) if retry_after else None
    except ValueError:
        return None
