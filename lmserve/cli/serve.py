"""`lmserve serve api_server [MODEL]`."""

from __future__ import annotations

from typing import Any

import click

from lmserve.cli.fields import SECTIONS
from lmserve.cli.logs import set_up_logging
from lmserve.cli.options import load_options, setting_options
from lmserve.errors import SettingsError


@click.group()
def serve() -> None:
    """Start a server."""


@serve.command("api_server")
@click.argument("model", required=False)
@setting_options(*SECTIONS)
@click.option("--tp", default=1, help="devices to split the model over: 1  [default: 1]")
def api_server(model: str | None, tp: int, **options: Any) -> None:
    """Serve MODEL over HTTP, in the manner of OpenAI's API.

    MODEL is a directory of safetensors, a .gguf file or a hub id. Without one a small default
    model is fetched once and served.
    """
    if tp != 1:
        raise SettingsError(f"--tp {tp}: tensor parallelism is not supported yet; leave it at 1")
    loaded = load_options(options, model)
    set_up_logging(loaded)
    from lmserve.cli.local import with_model_found
    from lmserve.server import lifecycle

    lifecycle.bind(loaded.settings.server).close()  # refused before anything is fetched
    lifecycle.serve(with_model_found(loaded.settings), click.echo)
