"""`lmserve run "prompt"`: one answer on stdout."""

from __future__ import annotations

import asyncio
import sys
from contextlib import aclosing
from typing import Any

import click

from lmserve.cli.logs import set_up_logging
from lmserve.cli.options import (
    SettingsCommand,
    load_options,
    sampling_options,
    setting_options,
)
from lmserve.cli.talk import (
    Message,
    conversation,
    open_talker,
    sampling_of,
    user,
    with_model_ready,
)
from lmserve.settings import Settings


@click.command(cls=SettingsCommand)
@click.argument("prompt")
@click.option("--model", "-m", metavar="MODEL|URL", help="as `serve` takes it, or a server's URL")
@sampling_options
@setting_options("engine", "log")
def run(prompt: str, model: str | None, system: str | None, **options: Any) -> None:
    """Answer PROMPT once on stdout; "-" reads it from stdin."""
    sampling = sampling_of(options)
    loaded = load_options(options, model)
    set_up_logging(loaded, quiet=True)
    if prompt == "-":
        prompt = sys.stdin.read()
    messages = [*conversation(system), user(prompt)]
    asyncio.run(_answer(with_model_ready(loaded.settings), messages, sampling))


async def _answer(settings: Settings, messages: list[Message], sampling: dict[str, Any]) -> None:
    async with open_talker(settings) as talker:
        async with aclosing(talker.answer(messages, sampling)) as text:
            async for piece in text:
                click.echo(piece, nl=False)
        click.echo()
