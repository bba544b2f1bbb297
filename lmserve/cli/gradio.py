"""`lmserve serve gradio URL`: the playground, a web page of its own in front of a server."""

from __future__ import annotations

import os

import click

from lmserve.cli.lists import ListOption, ListsCommand, words
from lmserve.cli.talk import is_url
from lmserve.errors import SettingsError, SetupError


@click.command("gradio", cls=ListsCommand)
@click.argument("url", metavar="API_SERVER_URL")
@click.option(
    "--server-name", default="localhost", help="address to listen on  [default: localhost]"
)
@click.option(
    "--server-port",
    type=click.IntRange(0, 65535),
    default=6006,
    metavar="PORT",
    help="port to listen on; 0 picks a free one  [default: 6006]",
)
@click.option("--api-key", metavar="KEY", help="one of the server's --api-keys")
@click.option(
    "--allowed-hosts",
    cls=ListOption,
    multiple=True,
    metavar="NAME...",
    help="names that calls may be for, beside addresses and localhost",
)
@click.option("--share", is_flag=True, help="also make a public link, by a tunnel of gradio.live")
def gradio(
    url: str,
    server_name: str,
    server_port: int,
    api_key: str | None,
    allowed_hosts: tuple[str, ...],
    share: bool,
) -> None:
    """Open a playground for the server at API_SERVER_URL, in the browser (extra `gradio`)."""
    if not is_address(url):
        raise SettingsError(
            f"{url} is not a server's URL: start `lmserve serve api_server` and give its URL"
        )
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read where gradio is imported
    try:
        import gradio as installed  # noqa: F401
    except ImportError:
        raise SetupError("gradio is not installed: pip install 'lmserve[gradio]'") from None
    from lmserve.cli.playground_server import serve
    from lmserve.edge.hosts import Hosts

    allowed = ("*",) if share else words(allowed_hosts)
    hosts = Hosts(server_name, allowed, has_keys=False)
    serve(url, api_key, server_name, server_port, share, hosts)


def is_address(url: str) -> bool:
    """Whether this is no model's path or name: a URL, or host:port."""
    host, _, port = url.rstrip("/").rpartition(":")
    return is_url(url) or (host != "" and "/" not in host and port.isdigit())
