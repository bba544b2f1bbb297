"""POST /v1/chat/interactive: LMDeploy's own chat, with sessions."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass

from aiohttp import web

from lmserve.edge.keyring import OWNER
from lmserve.errors import LmserveError, PromptTooLong, RequestError, SessionFull, SessionLost
from lmserve.protocol.interactive import (
    NO_SESSION,
    GenerateRequest,
    GenerateResponse,
    InteractiveEncoder,
)
from lmserve.protocol.openapi import Operation
from lmserve.server import body, sse
from lmserve.server.keys import SERVICE, SESSIONS, SETTINGS
from lmserve.server.routes.route import Route, json_response
from lmserve.service.generate import Generation, collect
from lmserve.service.sessions.sessions import SessionKey, Turn
from lmserve.types import TextDelta

SESSION_HEADER = "X-Session-Id"
CACHED_HEADER = "X-Cached-Tokens"  # of the prompt, whose KV was reused


@dataclass(frozen=True, slots=True)
class Alone:
    """A turn of no session."""

    generation: Generation
    history_tokens: int = 0

    @property
    def input_tokens(self) -> int:
        return self.generation.num_prompt_tokens

    async def settled(self) -> None:
        """Nothing is kept."""


async def chat_interactive(request: web.Request) -> web.StreamResponse:
    async with body.reading(request, GenerateRequest) as asked:
        asked.check()
        key = _session(request, asked)
        if asked.cancel or asked.ends_session:  # at once: these wait for no turn
            return await _control(request, asked, key)
        try:
            if asked.replays:
                return await _replay(request, asked, key)
            turn = await _begin(request, asked, key)
        except PromptTooLong as error:
            return await _say(request, asked, key, _overflow(error))
        except SessionLost as error:
            lost = InteractiveEncoder().whole(error.message, 0, "error")
            return await _say(request, asked, key, lost)
    with turn.generation.lease():
        return await (_stream if asked.stream else _whole)(request, turn, key)


def _session(request: web.Request, asked: GenerateRequest) -> SessionKey | None:
    """The session that the call names; a new one where it wants one and names none."""
    if asked.session_id == NO_SESSION:
        if not asked.interactive_mode:
            return None
        asked.session_id = request.app[SESSIONS].new_id()
    return SessionKey(request[OWNER], str(asked.session_id))


async def _begin(
    request: web.Request, asked: GenerateRequest, key: SessionKey | None
) -> Turn | Alone:
    """Waits for the session's turn and starts the answer. No await may follow before its lease."""
    app = request.app
    as_text = app[SETTINGS].server.cap != "chat"
    wanted = asked.to_generate(request[OWNER], as_text=as_text)
    try:
        if key is None:
            return Alone(await app[SERVICE].generate(wanted))
        return await app[SESSIONS].turn(key, wanted, keep=bool(asked.interactive_mode))
    except RequestError as error:
        if error.param == "messages":  # what chat templates complain of
            error.param = "prompt"
        raise


# --- answers without a generation ---------------------------------------------------------


async def _control(
    request: web.Request, asked: GenerateRequest, key: SessionKey | None
) -> web.StreamResponse:
    """Cancels or ends: plain JSON even where a stream was asked for."""
    if key is not None:
        sessions = request.app[SESSIONS]
        if asked.cancel:
            sessions.cancel(key)
        else:
            await sessions.end(key)
    return _object(InteractiveEncoder().whole("", 0, "stop"), _headers(key))


async def _replay(
    request: web.Request, asked: GenerateRequest, key: SessionKey | None
) -> web.StreamResponse:
    """The prompt enters the session and is not answered."""
    assert key is not None, "interactive mode has a session"
    history_tokens = await request.app[SESSIONS].append(key, asked.messages())
    encoder = InteractiveEncoder(history_tokens=history_tokens)
    return await _say(request, asked, key, encoder.whole("", 0, "length"))


def _overflow(error: PromptTooLong) -> bytes:
    """Nothing fits after this prompt: no answer, and the session stays as it was."""
    history_tokens = error.history_tokens if isinstance(error, SessionFull) else 0
    encoder = InteractiveEncoder(max(0, error.num_tokens - history_tokens), history_tokens)
    return encoder.whole("", 0, "length")


async def _say(
    request: web.Request, asked: GenerateRequest, key: SessionKey | None, answer: bytes
) -> web.StreamResponse:
    """One object, in the form that was asked for."""
    if not asked.stream:
        return _object(answer, _headers(key))

    async def line() -> AsyncGenerator[bytes, None]:
        yield answer + b"\n"

    return await sse.send(request, line(), late=lambda: _headers(key), keep_alive=False)


# --- answers --------------------------------------------------------------------------------


async def _whole(
    request: web.Request, turn: Turn | Alone, key: SessionKey | None
) -> web.StreamResponse:
    encoder = InteractiveEncoder(turn.input_tokens, turn.history_tokens)
    try:
        text, done = await collect(turn.generation)
        await turn.settled()
    except LmserveError as error:
        answer = encoder.failed(error)
    else:
        answer = encoder.whole(text, done.usage.completion_tokens, done.finish_reason)
    return _object(answer, _headers(key, turn))


async def _stream(
    request: web.Request, turn: Turn | Alone, key: SessionKey | None
) -> web.StreamResponse:
    encoder = InteractiveEncoder(turn.input_tokens, turn.history_tokens)
    return await sse.send(
        request,
        stream_lines(turn, encoder),
        lambda write: turn.generation.follow(lambda delta: write(encoder.delta(delta))),
        end_with=lambda error: encoder.failed(error) + b"\n",
        late=lambda: _headers(key, turn),
        keep_alive=False,
    )


async def stream_lines(
    turn: Turn | Alone, encoder: InteractiveEncoder
) -> AsyncGenerator[bytes, None]:
    """One line a step; then the last, once the turn is kept. A failure is told by it, too."""
    try:
        async for event in turn.generation.events():
            if isinstance(event, TextDelta):
                yield encoder.delta(event)
            else:
                await turn.settled()
                num_tokens = event.usage.completion_tokens
                yield encoder.whole("", num_tokens, event.finish_reason) + b"\n"
    except LmserveError as error:
        yield encoder.failed(error) + b"\n"


def _object(answer: bytes, headers: dict[str, str]) -> web.Response:
    response = json_response(answer)
    response.headers.update(headers)
    return response


def _headers(key: SessionKey | None, turn: Turn | Alone | None = None) -> dict[str, str]:
    """What the five keys do not tell. Reused tokens are known once a step was made."""
    headers = {} if key is None else {SESSION_HEADER: key.id}
    if turn is not None:
        headers[CACHED_HEADER] = str(turn.generation.usage.cached_tokens)
    return headers


ROUTES = [
    Route(
        "POST",
        "/v1/chat/interactive",
        chat_interactive,
        Operation(
            id="chat_interactive_v1",
            summary="Take a turn in a conversation that the server may keep",
            tag="generate",
            description="LMDeploy's own chat. With `interactive_mode` the conversation is kept "
            f"under its `session_id`, told in the header `{SESSION_HEADER}`; only the new turn "
            f"is run, as `{CACHED_HEADER}` shows. A conversation that is full answers nothing, "
            "with `length`.",
            request=GenerateRequest,
            example={
                "prompt": "Hello! How are you?",
                "session_id": 1,
                "interactive_mode": True,
            },
            response=GenerateResponse,
            stream=GenerateResponse,
            lines=True,
            statuses=(400, 409, 413, 429, 500, 503),
        ),
    )
]
