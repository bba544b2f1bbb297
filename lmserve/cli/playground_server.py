"""The playground's own web server, from its port to the last page's session."""

from __future__ import annotations

import asyncio
import secrets
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click
import fastapi
import gradio as gr
import uvicorn
from gradio.networking import setup_tunnel
from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from lmserve.cli.interactive import open_interactive
from lmserve.cli.playground import CSS, Playground, build
from lmserve.edge.hosts import Hosts
from lmserve.edge.listen import bind, url_of
from lmserve.errors import CrossSite, LmserveError

FOREIGN = ("cross-site", "same-site")
GRACE_S = 1  # at the end, what pages wait for gets this long


def serve(url: str, api_key: str | None, name: str, port: int, share: bool, hosts: Hosts) -> None:
    """Serves until SIGINT or SIGTERM. Raises SetupError where the port or the server at `url`
    cannot be had."""
    with bind(name, port) as listener:
        asyncio.run(_serve(url, api_key, listener, share, hosts))


async def _serve(
    url: str, api_key: str | None, listener: socket.socket, share: bool, hosts: Hosts
) -> None:
    async with open_interactive(url, api_key) as client:
        playground = Playground(client)
        app = mount(build(playground, client.model))
        app.add_middleware(Door, hosts=hosts)
        server = Server(app, lambda: _announce(listener, client.model, share))
        try:
            await server.serve(sockets=[listener])
        finally:
            await playground.close()


def mount(blocks: gr.Blocks) -> fastapi.FastAPI:
    """No public API, nothing to upload, nothing from elsewhere."""
    app = fastapi.FastAPI(openapi_url=None)
    gr.mount_gradio_app(
        app,
        blocks,
        path="/",
        theme=gr.themes.Default(primary_hue="blue"),  # its fonts come from here
        css=CSS,
        footer_links=[],
        run_history=False,
        max_file_size=1,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
        allowed_paths=[],
    )
    return app


class Door:
    """Lets no other web page use the key that this one has: none that had its name lead here, and
    none that has its visitors' browsers ask. Browsers tell which it is."""

    def __init__(self, app: ASGIApp, hosts: Hosts):
        self._app = app
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            try:
                self._hosts.check(headers.getlist("host"))
                if scope["method"] == "POST" and headers.get("sec-fetch-site") in FOREIGN:
                    raise CrossSite("another web page may not call this")
            except LmserveError as error:
                answer = PlainTextResponse(error.message, error.status)
                return await answer(scope, receive, send)
        await self._app(scope, receive, send)


class Server(uvicorn.Server):
    """Says when it listens, and ends by a signal without raising it again."""

    def __init__(self, app: fastapi.FastAPI, announce: Callable[[], None]):
        super().__init__(
            uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=GRACE_S)
        )
        self._announce = announce

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._announce()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        yield


def _announce(listener: socket.socket, model: str, share: bool) -> None:
    click.echo(f"playground of {model}: {url_of(listener)}")
    if share:
        port = listener.getsockname()[1]
        threading.Thread(target=_share, args=[port], name="share", daemon=True).start()


def _share(port: int) -> None:
    try:
        public = setup_tunnel("127.0.0.1", port, secrets.token_urlsafe(32), None, None)
        click.echo(f"public link: {public}")
    except Exception as error:
        click.echo(f"Error: no public link: {error}", err=True)
