"""`lmserve serve api_client URL`: a conversation in the terminal that the server keeps."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, aclosing
from typing import TYPE_CHECKING

import click

from lmserve.cli.loop import LoopThread
from lmserve.cli.terminal import Terminal
from lmserve.errors import LmserveError

if TYPE_CHECKING:
    from lmserve.cli.interactive import InteractiveClient, Line

HELP = (
    "A blank line sends. `end` forgets the conversation, `exit` forgets it and leaves, "
    "Ctrl-D leaves, Ctrl-C stops an answer."
)
STOP_TIMEOUT_S = 2.0  # an answer that was cancelled ends well before


@click.command("api_client")
@click.argument("url", default="http://127.0.0.1:23333", metavar="[API_SERVER_URL]")
@click.option("--api-key", metavar="KEY", help="one of the server's --api-keys")
@click.option(
    "--session-id",
    type=click.IntRange(min=0),
    default=1,
    metavar="N",
    help="the conversation to go on with  [default: 1]",
)
@click.option(
    "--request-output-len",
    type=click.IntRange(min=1),
    default=512,
    metavar="TOKENS",
    help="longest answer, in tokens  [default: 512]",
)
def api_client(url: str, api_key: str | None, session_id: int, request_output_len: int) -> None:
    """Talk with the server at API_SERVER_URL (http://127.0.0.1:23333), which keeps the history."""
    from lmserve.cli.interactive import open_interactive

    with LoopThread() as loop:
        stack = AsyncExitStack()
        try:
            client = loop.call(stack.enter_async_context(open_interactive(url, api_key)))
            ApiClient(loop, client, session_id, request_output_len).talk()
        finally:
            loop.call(stack.aclose())


class ApiClient:
    """The main thread reads lines and hears Ctrl-C; answers run in the loop's thread."""

    def __init__(
        self, loop: LoopThread, client: InteractiveClient, session_id: int, max_tokens: int
    ):
        self._loop = loop
        self._client = client
        self._session_id = session_id
        self._max_tokens = max_tokens
        self._terminal = Terminal()
        self._has_begun = False  # whether the history can only be ours
        self._has_spoken = False  # whether the answer that is written is not empty

    def talk(self) -> None:
        """Until the end of input, `exit`, or Ctrl-C where nothing is typed or answered."""
        click.echo(f"{self._client.model}, session {self._session_id}. {HELP}", err=True)
        while (prompt := self._read()) is not None:
            match prompt.strip():
                case "exit":
                    self._loop.call(self._client.end(self._session_id))
                    return
                case "end":
                    self._end()
                case _:
                    self._turn(prompt)

    def _read(self) -> str | None:
        """The lines up to a blank one, or to the end of input; None where that is all."""
        lines: list[str] = []
        while True:
            try:
                line = self._terminal.read("... " if lines else "> ")
            except KeyboardInterrupt:
                if not lines and not self._terminal.unsent():
                    raise
                lines = []
                click.echo()
                continue
            if line is not None and line.strip():
                lines.append(line)
            elif lines or line is None:
                return "\n".join(lines) or None

    def _end(self) -> None:
        try:
            self._loop.call(self._client.end(self._session_id))
        except LmserveError as error:
            click.echo(f"Error: {error.message}", err=True)
        else:
            self._has_begun = True
            click.echo("(the conversation is forgotten: a new one begins)", err=True)

    def _turn(self, prompt: str) -> None:
        self._has_spoken = False
        try:
            notice = self._notice(self._loop.call(self._answer(prompt)))
        except LmserveError as error:
            notice = f"Error: {error.message}"
        except KeyboardInterrupt:
            notice = "(stopped)"
        if self._has_spoken:
            click.echo()
        if notice is not None:
            click.echo(notice, err=True)

    def _notice(self, last: Line) -> str | None:
        if last.finish_reason == "error":
            return f"Error: {last.text}"
        if last.finish_reason != "length":
            return None
        if last.is_full or last.tokens < self._max_tokens:
            return "(the session is full: `end` begins a new one)"
        return f"(cut after {last.tokens} tokens: --request-output-len allows more)"

    async def _answer(self, prompt: str) -> Line:
        """Cancelled, it has the server stop and shows what was said until then: that much is in
        the session."""
        answer = asyncio.create_task(self._print(prompt))
        try:
            return await asyncio.shield(answer)
        except asyncio.CancelledError:
            try:
                await self._client.cancel(self._session_id)
                await asyncio.wait([answer], timeout=STOP_TIMEOUT_S)
            finally:
                answer.cancel()
                await asyncio.gather(answer, return_exceptions=True)
            raise

    async def _print(self, prompt: str) -> Line:
        answer = self._client.answer(self._session_id, prompt, request_output_len=self._max_tokens)
        async with aclosing(answer) as lines:
            async for line in lines:
                self._tell_of_history(line)
                if line.text and line.finish_reason != "error":
                    click.echo(line.text, nl=False)
                    self._has_spoken = True
        return line

    def _tell_of_history(self, line: Line) -> None:
        if line.history_tokens and not self._has_begun:
            click.echo(f"(goes on after {line.history_tokens} tokens of before)", err=True)
        self._has_begun = True
