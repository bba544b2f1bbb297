"""`lmserve chat [MODEL|URL]`: a conversation in the terminal."""

from __future__ import annotations

from contextlib import AsyncExitStack, aclosing
from typing import Any

import click

from lmserve.cli.logs import set_up_logging
from lmserve.cli.loop import LoopThread
from lmserve.cli.options import (
    SettingsCommand,
    load_options,
    sampling_options,
    setting_options,
)
from lmserve.cli.talk import (
    Message,
    Talker,
    conversation,
    open_talker,
    sampling_of,
    user,
    with_model_ready,
)
from lmserve.cli.terminal import Terminal
from lmserve.errors import LmserveError

HELP = "/clear forgets the conversation, /exit or Ctrl-D leaves, Ctrl-C stops an answer."


@click.command(cls=SettingsCommand)
@click.argument("model", required=False, metavar="[MODEL|URL]")
@sampling_options
@setting_options("engine", "log")
def chat(model: str | None, system: str | None, **options: Any) -> None:
    """Talk with MODEL, started here, or with any OpenAI-compatible server at URL."""
    sampling = sampling_of(options)
    loaded = load_options(options, model)
    set_up_logging(loaded, quiet=True)
    settings = with_model_ready(loaded.settings)
    with LoopThread() as loop:
        stack = AsyncExitStack()
        try:
            talker = loop.call(stack.enter_async_context(open_talker(settings)))
            Chat(loop, talker, sampling, system).talk()
        finally:
            loop.call(stack.aclose())


class Chat:
    """The main thread reads lines and hears Ctrl-C; answers run in the loop's thread."""

    def __init__(
        self, loop: LoopThread, talker: Talker, sampling: dict[str, Any], system: str | None
    ):
        self._loop = loop
        self._talker = talker
        self._sampling = sampling
        self._start = conversation(system)
        self._messages = list(self._start)
        self._terminal = Terminal()

    def talk(self) -> None:
        """Until the end of input, /exit, or Ctrl-C while nothing is being answered."""
        click.echo(f"{self._talker.name}. {HELP}", err=True)
        while (line := self._read()) not in (None, "/exit"):
            if line == "/clear":
                self._messages = list(self._start)
            elif line == "/help":
                click.echo(HELP, err=True)
            elif line:
                self._turn(line)

    def _read(self) -> str | None:
        line = self._terminal.read("> ")
        return None if line is None else line.strip()

    def _turn(self, line: str) -> None:
        """One question and its answer. A failed one leaves the conversation as it was."""
        asked = [*self._messages, user(line)]
        pieces: list[str] = []
        try:
            self._loop.call(self._answer(asked, pieces))
        except LmserveError as error:
            click.echo(f"Error: {error.message}", err=True)
            return
        except KeyboardInterrupt:
            click.echo(" (stopped)", err=True)
        click.echo()
        self._messages = [*asked, {"role": "assistant", "content": "".join(pieces)}]

    async def _answer(self, messages: list[Message], pieces: list[str]) -> None:
        async with aclosing(self._talker.answer(messages, self._sampling)) as text:
            async for piece in text:
                pieces.append(piece)
                click.echo(piece, nl=False)
