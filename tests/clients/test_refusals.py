"""Refusals of every era of these servers become one kind of error."""

from __future__ import annotations

import json
from typing import Any

import pytest
from lmserve_client.errors import (
    APIError,
    APIStatusError,
    APIStreamError,
    status_error,
    told_error,
)

FLAT = {"object": "error", "message": "no", "type": "t", "code": 404, "param": "model"}
NESTED = {"error": {"message": "no", "type": "t", "code": "c", "param": "model"}}


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (NESTED, ("no", "model", "c", "t")),
        ({**FLAT, **NESTED}, ("no", "model", "c", "t")),  # ours
        (FLAT, ("no", "model", "404", "t")),
        ({"detail": NESTED}, ("no", "model", "c", "t")),  # LMDeploy's of a wrong key
        ({"detail": "no"}, ("no", None, None, None)),
        ({"error": "no"}, ("no", None, None, None)),
        (
            {"detail": [{"loc": ["body", "prompt"], "msg": "Field required"}]},
            ("prompt: Field required", "prompt", None, None),
        ),
        ({"detail": ["no"]}, ("no", None, None, None)),
        ("plain", ("plain", None, None, None)),
    ],
)
def test_a_refusal_is_read(body: Any, said: tuple[str | None, ...]) -> None:
    error = status_error(404, json.dumps(body).encode(), {})
    assert (error.message, error.param, error.code, error.type) == said
    assert error.status == 404 and error.body == body
    assert str(error) == f"404: {said[0]}"


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "no reason given"), (b"<h1>Bad Gateway</h1>\n", "<h1>Bad Gateway</h1>")],
)
def test_a_refusal_without_json(content: bytes, message: str) -> None:
    assert status_error(502, content, {}).message == message


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("3", 3.0), ("0.5", 0.5), ("-1", 0.0), ("Wed, 21 Oct 2026 07:28:00 GMT", None), ("", None)],
)
def test_when_to_come_back(header: str, seconds: float | None) -> None:
    assert status_error(429, b"", {"retry-after": header}).retry_after_s == seconds


@pytest.mark.parametrize(
    ("item", "streamed", "kind"),
    [
        (FLAT, False, APIStatusError),  # LMDeploy 0.2 says it with status 200
        (FLAT, True, APIStreamError),
        (NESTED, True, APIStreamError),
        (NESTED, False, APIStreamError),
        ({"text": "hi", "finish_reason": "error"}, True, None),
        ({"object": "chat.completion", "error": None}, False, None),
    ],
)
def test_errors_within_a_success(
    item: dict[str, Any], streamed: bool, kind: type[APIError] | None
) -> None:
    error = told_error(item, streamed)
    assert (type(error) if error else None) is kind
    if isinstance(error, APIStatusError):
        assert error.status == 404
