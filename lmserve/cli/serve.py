"""`lmserve serve api_server [MODEL]`."""

from __future__ import annotations

from typing import Any

import click

from lmserve.cli.api_client import api_client
from lmserve.cli.gradio import gradio
from lmserve.cli.lmdeploy import ServerCommand, lmdeploy_options, load_server_options
from lmserve.cli.logs import announcer, set_up_logging
from lmserve.cli.options import setting_options
from lmserve.cli.proxy import proxy
from lmserve.fields import SECTIONS


@click.group()
def serve() -> None:
    """Start a server."""


serve.add_command(api_client)
serve.add_command(gradio)
serve.add_command(proxy)


@serve.command("api_server", cls=ServerCommand)
@click.argument("model", required=False)
@setting_options(*SECTIONS)
@lmdeploy_options
def api_server(model: str | None, **options: Any) -> None:
    """Serve MODEL over HTTP, in the manner of OpenAI's API.

    MODEL is a directory of safetensors, a .gguf file or a hub id. Without one a small default
    model is fetched once and served. A flag may be spelled with `_` for `-`; one that takes a
    list takes all words up to the next flag, so MODEL stands before it.
    """
    from lmserve.edge.signals import hangups_kept

    click.get_current_context().with_resource(hangups_kept())
    loaded = load_server_options(options, model)
    set_up_logging(loaded)
    from lmserve.cli.local import with_chat_template, with_model_found
    from lmserve.server import lifecycle
    from lmserve.tracing import tracing

    settings = with_chat_template(loaded)
    if settings.log.otlp_traces_endpoint is not None:
        tracing.check()
    lifecycle.check(settings)  # refused before anything is fetched
    lifecycle.serve(with_model_found(settings), announcer(settings.log.log_format))
