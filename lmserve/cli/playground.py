"""The playground's page: one chat in front of /v1/chat/interactive.

What a page shows is the truth. Its session on the server holds the same conversation, so that a
turn sends only the new instruction; a page without a session (it was offline, the server forgot)
sends all it shows, which begins a new one.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, suppress
from html import escape
from typing import Any

import gradio as gr

from lmserve.cli.interactive import InteractiveClient, Line
from lmserve.errors import EngineError, LmserveError, SessionFull

TITLE = "lmserve Playground"
MAX_SESSION_ID = 2**53 - 1  # every JSON reader holds it; no two pages meet
MAX_RUNNING = 64  # answers at once; more pages wait
TELL_EVERY_S = 0.1  # gradio takes some 10 ms to tell a page what is new
CSS = """
#page {width: 100%; max-width: 1100px; margin: 0 auto}
#conversation {min-height: 260px}
footer {display: none !important}
"""

Message = dict[str, Any]
Shown = tuple[Any, ...]  # instruction, conversation, cancel, reset


class Playground:
    """The events of its pages. A page is gradio's `session_hash`."""

    def __init__(self, client: InteractiveClient):
        self._client = client
        self._sessions: dict[str, int] = {}  # of the pages that are open and have begun

    async def ask(
        self,
        instruction: str,
        conversation: list[Message],
        max_tokens: int,
        top_p: float,
        temperature: float,
        request: gr.Request,
    ) -> AsyncIterator[Shown]:
        if not instruction.strip():
            yield gr.skip(), gr.skip(), gr.skip(), gr.skip()
            return
        asked = [*conversation, {"role": "user", "content": instruction}]
        yield "", asked, gr.update(interactive=True), gr.update(interactive=False)
        is_new = _page(request) not in self._sessions
        lines = self._client.answer(
            self._sessions.setdefault(_page(request), secrets.randbelow(MAX_SESSION_ID) + 1),
            _plain(asked) if is_new and conversation else instruction,
            request_output_len=max_tokens,
            top_p=top_p,
            temperature=temperature,
        )
        answer = Answer(lines)
        try:
            async with aclosing(answer.grow()) as texts:
                async for text in texts:
                    answered = [*asked, {"role": "assistant", "content": text}]
                    yield gr.skip(), answered, gr.skip(), gr.skip()
        except LmserveError as error:  # the turn did not happen: ask it again
            _warn(error)
            yield instruction, conversation, gr.skip(), gr.skip()
            if is_new or not isinstance(error, SessionFull):
                await self.leave(request)
            return
        if answer.finish_reason == "length":
            gr.Info(f"The answer was cut after {answer.num_tokens} tokens.")

    async def cancel(self, request: gr.Request) -> None:
        """The answer ends in its own stream, and what was said stays in the session."""
        if (session_id := self._sessions.get(_page(request))) is not None:
            try:
                await self._client.cancel(session_id)
            except LmserveError as error:
                _warn(error)

    async def reset(self, request: gr.Request) -> tuple[str, list[Message]]:
        await self.leave(request)
        return "", []

    async def leave(self, request: gr.Request) -> None:
        """The page closed, or begins anew. A session that cannot be ended now expires there."""
        session_id = self._sessions.pop(_page(request), None)
        if session_id is not None:
            with suppress(LmserveError):
                await self._client.end(session_id)

    async def close(self) -> None:
        """Ends the sessions of the pages still open."""
        with suppress(LmserveError):
            while self._sessions:
                await self._client.end(self._sessions.popitem()[1])


class Answer:
    """Reads lines as they come and tells of them as a page can bear."""

    def __init__(self, lines: AsyncGenerator[Line, None]):
        self.text = ""
        self.num_tokens = 0
        self.finish_reason: str | None = None
        self._lines = lines

    async def grow(self) -> AsyncGenerator[str, None]:
        """All its text, each time there is more."""
        reading = asyncio.create_task(self._read())
        told = ""
        try:
            while not reading.done():
                await asyncio.wait([reading], timeout=TELL_EVERY_S)
                if self.text != told:
                    yield (told := self.text)
            await reading
            if self.text != told:  # the page took its time over what was told before
                yield self.text
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    async def _read(self) -> None:
        async with aclosing(self._lines) as lines:
            async for line in lines:
                if line.finish_reason == "error":
                    raise EngineError(line.text)
                if line.is_full:
                    raise SessionFull("The session is full: shorten the instruction, or Reset.")
                self.text += line.text
                self.num_tokens = line.tokens
                self.finish_reason = line.finish_reason


def build(playground: Playground, model: str) -> gr.Blocks:
    blocks = gr.Blocks(title=TITLE, analytics_enabled=False, fill_height=True, fill_width=True)
    with blocks, gr.Column(elem_id="page", scale=1):
        gr.Markdown(f"## {TITLE}\n{escape(model)}")
        conversation = gr.Chatbot(
            label=model, elem_id="conversation", scale=1, height="50vh", buttons=["copy_all"]
        )
        instruction = gr.Textbox(
            label="Instruction", placeholder="Type an instruction, and Enter", autofocus=True
        )
        with gr.Row():
            cancel = gr.Button("Cancel", interactive=False)
            reset = gr.Button("Reset")
        with gr.Row():
            max_tokens = gr.Slider(1, 2048, value=512, step=1, label="Maximum new tokens")
            top_p = gr.Slider(0.01, 1, value=0.8, step=0.01, label="Top_p")
            temperature = gr.Slider(0.01, 1.5, value=0.7, step=0.01, label="Temperature")
        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        turn = instruction.submit(
            playground.ask,
            [instruction, conversation, max_tokens, top_p, temperature],
            [instruction, conversation, cancel, reset],
            **quiet,
        )
        # told when the turn has ended for gradio too, which until then ignores another one
        turn.then(_at_rest, None, [cancel, reset], **quiet)
        cancel.click(playground.cancel, **quiet)
        reset.click(playground.reset, None, [instruction, conversation], **quiet)
        conversation.clear(playground.leave, **quiet)
        blocks.unload(playground.leave)
    blocks.queue(default_concurrency_limit=MAX_RUNNING, api_open=False)
    return blocks


def _page(request: gr.Request) -> str:
    return str(request.session_hash)


def _plain(conversation: list[Message]) -> list[Message]:
    """As the server takes it: gradio hands a message's text back as a list of parts."""
    return [{"role": one["role"], "content": _content(one["content"])} for one in conversation]


def _content(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "".join(part["text"] for part in content)


def _at_rest() -> tuple[Any, Any]:
    """Nothing to cancel, all to reset."""
    return gr.update(interactive=False), gr.update(interactive=True)


def _warn(error: LmserveError) -> None:
    gr.Warning(escape(error.message))
