"""What every command that calls a server has: its address, its key, its refusals."""

from __future__ import annotations

from typing import Any

import aiohttp
import orjson

from lmserve.errors import LmserveError, SetupError

# No limit on an answer's length; only a connection that cannot be made is given up.
TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=10)


def base_of(url: str) -> str:
    """`url` is a server's address, with or without http:// and /v1."""
    if "://" not in url:
        url = f"http://{url}"
    return url.rstrip("/").removesuffix("/v1") + "/v1"


def open_http(api_key: str | None = None) -> aiohttp.ClientSession:
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else None
    return aiohttp.ClientSession(timeout=TIMEOUT, headers=headers)


async def first_model(http: aiohttp.ClientSession, base: str) -> str:
    """The id of the first model served; also whether a server is there and takes our key."""
    try:
        async with http.get(f"{base}/models") as response:
            await refuse_failure(response)
            models = orjson.loads(await response.read())["data"]
            return str(models[0]["id"])
    except (aiohttp.ClientError, TimeoutError) as error:
        raise SetupError(f"{base}: no server answers there: {error}") from None
    except (ValueError, KeyError, IndexError, TypeError):
        raise SetupError(f"{base}/models lists no model: is it an OpenAI-style server?") from None


async def refuse_failure(response: aiohttp.ClientResponse) -> None:
    if response.status < 400:
        return
    body = await response.read()
    try:
        message = message_of(orjson.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        message = body.decode(errors="replace")[:200] or response.reason or ""
    raise LmserveError(f"{response.url} answered {response.status}: {message}")


def message_of(error: Any) -> str:
    return str(error["message"] if isinstance(error, dict) else error)
