"""Looks at a server now and then, and shows what it saw: on a terminal, or once on a pipe."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import termios
import time
import tty
from collections.abc import Iterator

import aiohttp
from rich.console import Console
from rich.live import Live

from lmserve.errors import LmserveError, SetupError
from lmserve.top.figures import Watched
from lmserve.top.snapshot import Snapshot
from lmserve.top.view import frame

FETCH_TIMEOUT_S = 10.0
ONCE_WIDTH, ONCE_HEIGHT = 100, 60  # of a frame for a pipe
_HINT = "q quits"
_REFUSED = {
    401: "asks for an API key: give --api-key or $LMSERVE_API_KEY",
    403: "does not let this API key see its metrics: it takes the scope `metrics`, and the "
    "port of --admin-port where there is one",
    404: "serves no /metrics: is it lmserve, with --metrics, and the port of --admin-port?",
}


class Refused(LmserveError):
    """The server is there, and tells nothing: asking again is no use."""


def metrics_url(url: str) -> str:
    """`url` is a server's address, with or without http:// and a path of its API."""
    base = url if "://" in url else f"http://{url}"
    base = base.rstrip("/").removesuffix("/metrics").removesuffix("/v1")
    return f"{base}/metrics"


async def watch(url: str, interval_s: float, api_key: str | None, *, once: bool) -> None:
    """Until `q` or Ctrl-C, or one frame. Raises SetupError, Refused."""
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else None
    timeout = aiohttp.ClientTimeout(total=FETCH_TIMEOUT_S)
    async with aiohttp.ClientSession(headers=headers, timeout=timeout) as http:
        watched = Watched(metrics_url(url).removesuffix("/metrics"))
        if once:
            await _show_once(http, watched, interval_s)
        else:
            await _show_live(http, watched, interval_s)


async def _show_once(http: aiohttp.ClientSession, watched: Watched, interval_s: float) -> None:
    for pause_s in (0.0, interval_s):  # a rate takes two looks
        await asyncio.sleep(pause_s)
        await _look(http, watched)
        if watched.problem:
            raise SetupError(f"{watched.url}: {watched.problem}")
    console = Console()
    if not console.is_terminal:
        console = Console(width=ONCE_WIDTH, no_color=True)
    console.print(frame(watched, console.width, ONCE_HEIGHT))


async def _show_live(http: aiohttp.ClientSession, watched: Watched, interval_s: float) -> None:
    console = Console()
    if not console.is_terminal:
        raise SetupError("this is no terminal: --once prints one frame")

    def shown() -> object:
        return frame(watched, console.width, console.height, _HINT)

    with _keys() as keys, Live(console=console, screen=True, auto_refresh=False) as live:
        size = console.size
        next_s = time.monotonic()
        while "q" not in keys:
            if time.monotonic() >= next_s:
                next_s = time.monotonic() + interval_s
                await _look(http, watched)
            elif console.size == size:
                await asyncio.sleep(min(0.1, max(0.0, next_s - time.monotonic())))
                continue
            size = console.size
            live.update(shown(), refresh=True)  # type: ignore[arg-type]


async def _look(http: aiohttp.ClientSession, watched: Watched) -> None:
    """Raises Refused."""
    try:
        async with http.get(f"{watched.url}/metrics") as response:
            if response.status in _REFUSED:
                raise Refused(f"{watched.url} {_REFUSED[response.status]}")
            if response.status != 200:
                watched.miss(f"answers {response.status}")
                return
            watched.see(Snapshot.of(await response.text(), time.monotonic()))
    except TimeoutError:
        watched.miss("does not answer")
    except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError):
        raise SetupError(f"{watched.url} is no URL") from None
    except aiohttp.ClientError as error:
        watched.miss(f"cannot be reached ({_reason(error)})")
    except ValueError as error:
        watched.miss(f"its metrics cannot be read ({error})")


def _reason(error: aiohttp.ClientError) -> str:
    if not isinstance(error, OSError) or not error.errno:
        return str(error) or type(error).__name__
    if error.errno < 0:  # of a look-up of a name, which has numbers of its own
        return str(error.strerror).lower()
    return os.strerror(error.errno).lower()


@contextlib.contextmanager
def _keys() -> Iterator[set[str]]:
    """Keys that were pressed so far, unseen on the screen."""
    pressed: set[str] = set()
    if not sys.stdin.isatty():
        yield pressed
        return
    fd, loop = sys.stdin.fileno(), asyncio.get_running_loop()
    before = termios.tcgetattr(fd)
    tty.setcbreak(fd)
    loop.add_reader(fd, lambda: pressed.update(os.read(fd, 64).decode(errors="ignore").lower()))
    try:
        yield pressed
    finally:
        loop.remove_reader(fd)
        termios.tcsetattr(fd, termios.TCSADRAIN, before)
