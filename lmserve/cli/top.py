"""`lmserve top [URL]`: a running server, watched in the terminal."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import click

from lmserve.errors import SetupError


@click.command()
@click.argument("url", default="http://127.0.0.1:23333")
@click.option(
    "--interval",
    "interval_s",
    type=click.FloatRange(0.1, 3600),
    default=1.0,
    show_default=True,
    help="seconds between two looks",
)
@click.option("--once", is_flag=True, help="print one frame, after two looks, and end")
@click.option(
    "--api-key", envvar="LMSERVE_API_KEY", show_envvar=True, help="where the server asks for one"
)
def top(url: str, interval_s: float, once: bool, api_key: str | None) -> None:
    """Watch the server at URL: its load, latencies, KV cache, memory and API keys.

    `q` or Ctrl-C ends it. A server that is away is waited for.
    """
    try:
        from lmserve.top.watch import watch
    except ImportError as error:
        if error.name is None or error.name.partition(".")[0] != "rich":
            raise
        raise SetupError("`lmserve top` needs rich: pip install 'lmserve[top]'") from None
    with suppress(KeyboardInterrupt):
        asyncio.run(watch(url, interval_s, api_key, once=once))
