"""A client of a real engine's server, and how a refusal has to read.

Beside every test here others stream, and hear what they would hear alone, to the byte; when it
ends nothing is held, and no task, descriptor or memory is more (real.py).
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import aiohttp
import orjson
import pytest

from tests.hardening.real import engine_server, http, real, tiny_model

__all__ = ["engine_server", "http", "real", "tiny_model"]  # fixtures, for all tests here


@pytest.fixture
async def client(http: aiohttp.ClientSession) -> AsyncIterator[aiohttp.ClientSession]:
    """With the session that the doors name."""
    assert (await http.post("/v1/sessions", json={"id": "hardened"})).status == 200
    yield http
    assert (await http.delete("/v1/sessions/hardened")).status == 200


def told(body: bytes) -> tuple[str, str | None]:
    """The message of a refusal and the field it names, in any API's words."""
    parsed = orjson.loads(body)
    error = parsed["error"]
    message = error if isinstance(error, str) else error["message"]
    assert message and "\n" not in message and "Traceback" not in message, message
    assert len(message) < 2000, message
    return message, error.get("param") if isinstance(error, dict) else None
