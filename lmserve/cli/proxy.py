"""`lmserve serve proxy`: one address for many servers."""

from __future__ import annotations

import logging
import math
from typing import Any

import click

from lmserve import logs
from lmserve.cli.lists import ListOption, ListsCommand, words
from lmserve.cli.logs import announcer
from lmserve.errors import SettingsError, SetupError

STRATEGIES = ("random", "min_expected_latency", "min_observed_latency")
_LIMITS = (
    "max_body_bytes",
    "max_connections",
    "max_sockets",
    "header_timeout_s",
    "drain_timeout_s",
)


def _finite(_: click.Context, param: click.Parameter, value: float | None) -> float | None:
    if value is not None and not math.isfinite(value):
        raise SettingsError(f"{param.opts[0]} must be a number of seconds, not {value}")
    return value


@click.command("proxy", cls=ListsCommand)
@click.option("--server-name", default="127.0.0.1", show_default=True, help="address to listen on")
@click.option("--server-port", default=8000, show_default=True, help="port; 0 picks a free one")
@click.option(
    "--routing-strategy",
    "--strategy",
    type=click.Choice(STRATEGIES),
    metavar=f"[{'|'.join(STRATEGIES)}]",
    default="min_expected_latency",
    show_default=True,
    help="which node gets a request that nothing ties to one",
)
@click.option(
    "--serving-strategy", default="Hybrid", metavar="Hybrid", help="the only one there is"
)
@click.option(
    "--node", "nodes", cls=ListOption, multiple=True, metavar="URL...", help="nodes, never dropped"
)
@click.option(
    "--api-keys",
    cls=ListOption,
    multiple=True,
    metavar="KEY...",
    help="keys, one of which every call must bring; nodes must know the first",
)
@click.option(
    "--admin-keys",
    cls=ListOption,
    multiple=True,
    metavar="KEY...",
    help="keys for /nodes/* and what ends nodes; where some are set, --api-keys may not",
)
@click.option("--key-file", metavar="FILE", help="a file of API keys (`lmserve keys`)")
@click.option(
    "--allowed-hosts",
    cls=ListOption,
    multiple=True,
    metavar="NAME...",
    help="names that calls may be for, beside addresses and localhost",
)
@click.option("--ssl", is_flag=True, help="serve HTTPS, with $SSL_KEYFILE and $SSL_CERTFILE")
@click.option("--max-body-bytes", type=click.IntRange(1024), help="largest request body taken")
@click.option(
    "--max-connections",
    type=click.IntRange(1),
    help="open connections, before others get 503",
)
@click.option("--max-sockets", type=click.IntRange(1), help="WebSockets, before others get 503")
@click.option(
    "--header-timeout-s",
    type=click.FloatRange(0, min_open=True),
    callback=_finite,
    help="a request's head must have come by then",
)
@click.option(
    "--drain-timeout-s",
    type=click.FloatRange(0),
    callback=_finite,
    help="at shutdown, open answers get this long to finish",
)
@click.option(
    "--log-level",
    type=click.Choice(("debug", "info", "warning", "error"), case_sensitive=False),
    default="info",
    show_default=True,
    help="least level logged",
)
@click.option(
    "--log-format",
    type=click.Choice(("text", "json")),
    default="text",
    show_default=True,
    help="lines for people, or one JSON object a line",
)
@click.option("--disable-cache-status", is_flag=True, help="accepted: no state is kept in files")
@click.option("--dummy-prefill", is_flag=True, hidden=True)
@click.option("--disable-gdr", is_flag=True, hidden=True)
@click.option("--migration-protocol", hidden=True)
@click.option("--link-type", hidden=True)
def proxy(
    server_name: str,
    server_port: int,
    routing_strategy: str,
    serving_strategy: str,
    nodes: tuple[str, ...],
    api_keys: tuple[str, ...],
    admin_keys: tuple[str, ...],
    key_file: str | None,
    allowed_hosts: tuple[str, ...],
    ssl: bool,
    log_level: str,
    log_format: str,
    **rest: Any,
) -> None:
    """Hand requests on to several servers, as if they were one.

    Servers announce themselves with --proxy-url, or are named here with --node.
    """
    from lmserve.edge.signals import hangups_kept

    click.get_current_context().with_resource(hangups_kept())
    if serving_strategy.lower() != "hybrid":
        raise SettingsError(
            f"--serving-strategy {serving_strategy}: not supported yet; leave it at Hybrid"
        )
    logs.set_up(log_level.upper(), logs.JSON if log_format == "json" else logs.TEXT)
    for name in ("dummy_prefill", "disable_gdr", "migration_protocol", "link_type"):
        if rest[name]:
            logging.getLogger(__name__).warning("--%s has no effect", name.replace("_", "-"))
    from lmserve.distributor.app import serve
    from lmserve.distributor.nodes import node_url
    from lmserve.distributor.settings import ProxySettings
    from lmserve.edge.listen import bind, url_of
    from lmserve.errors import InvalidField

    try:
        urls = tuple(node_url(url) for url in words(nodes))
    except InvalidField as error:
        raise SetupError(f"--node: {error.message}") from None
    given = {name: rest[name] for name in _LIMITS if rest[name] is not None}
    settings = ProxySettings(
        strategy=routing_strategy,
        nodes=urls,
        server_name=server_name,
        ssl=ssl,
        api_keys=words(api_keys),
        admin_keys=words(admin_keys),
        key_file=key_file,
        allowed_hosts=words(allowed_hosts),
        **given,
    )
    listener = bind(server_name, server_port)
    url = url_of(listener, https=ssl)
    with listener:
        serve(settings, listener, lambda: announcer(log_format)(f"distributing at {url}"))
