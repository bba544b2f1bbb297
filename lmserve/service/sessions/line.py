"""What a turn adds to a conversation's line: which messages are new, what is run, what is kept."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from lmserve.errors import InvalidField, PromptTooLong, SessionFull
from lmserve.service.prompt import ModelText
from lmserve.service.sessions.tree import check_many
from lmserve.service.store.rows import Entry, Line, Message, SessionKey
from lmserve.service.transcript import Transcript
from lmserve.types import GenerateRequest, History


async def find_new(line: Line, request: GenerateRequest, *, exact: bool) -> list[Message]:
    """As `new_messages`, checked."""
    await check_many(request.messages or [])
    return new_messages(line, request, exact=exact)


def new_messages(line: Line, request: GenerateRequest, *, exact: bool) -> list[Message]:
    """Those of the request that the line does not have. Where they are not meant exactly, a
    client may send the whole history again: if it repeats the line from its start, only the rest
    is new. Where they are, there may be none: the line's last message is answered (again)."""
    if request.text is not None:
        return [{"role": "user", "content": request.text}]
    assert request.messages is not None, "a session is given messages or text"
    if request.messages:
        return (not exact and not_repeated(line, request.messages)) or request.messages
    param = request.params.get("messages", "messages")
    if not exact or not line.messages:
        raise InvalidField(f"{param} is empty: give at least one message", param=param)
    if line.messages[-1].get("role") == "assistant":
        raise InvalidField(
            f"{param} is empty, and what it follows is an answer: give a message, or follow the "
            "message before that answer to have another",
            param=param,
        )
    return []


def not_repeated(line: Line, messages: Sequence[Message]) -> list[Message]:
    num_held = len(line.messages)
    if num_held and list(messages[:num_held]) == line.messages:
        return list(messages[num_held:])
    return list(messages)


def extended(
    request: GenerateRequest, key: SessionKey, line: Line, new: Sequence[Message]
) -> GenerateRequest:
    """The request with the line before it."""
    session_id = key.number if request.session_id is None else request.session_id
    request = dataclasses.replace(
        request, owner=key.owner, session_id=session_id, history=line.history
    )
    if request.text is None:
        return dataclasses.replace(request, messages=[*line.messages, *new])
    num_known = 0 if line.history is None else line.history.num_messages
    texts = [_text(message) for message in line.messages[num_known:]]
    return dataclasses.replace(request, text="".join((*texts, request.text)))


def check_room(text: ModelText, messages: list[Message]) -> None:
    """Refuses what can never fit. Raises PromptTooLong."""
    num_chars = sum([len(str(message.get("content") or "")) for message in messages])
    text.check_length(GenerateRequest(messages=messages), num_chars)


def entries(line: Line, new: Sequence[Message], transcript: Transcript) -> list[Entry]:
    """The new messages and their answer, with the tokens that were run. May take a moment."""
    text_key = transcript.text_key
    inputs = input_entries(line, new, transcript.prompt_ids, text_key)
    before = answer_entry(line, new, transcript.prompt_ids, text_key)
    answer = {"role": "assistant", "content": transcript.answer()}
    answer_ids = [*(before.token_ids or ()), *transcript.answer_ids()]
    return [*inputs, Entry(answer, answer_ids, before.restarts, text_key)]


def input_entries(
    line: Line, new: Sequence[Message], prompt: list[int], text_key: str
) -> list[Entry]:
    """The new messages, the last of them with what it added to the tokens of the line."""
    if not new:
        return []
    held = line.history
    goes_on = (
        held is not None
        and held.num_messages == len(line.messages)
        and len(new) == 1
        and prompt[: len(held.token_ids)] == held.token_ids
    )
    added = prompt[len(held.token_ids) :] if held is not None and goes_on else prompt
    last = Entry(new[-1], added, restarts=not goes_on, text_key=text_key)
    return [*map(Entry, new[:-1]), last]


def answer_entry(line: Line, new: Sequence[Message], prompt: list[int], text_key: str) -> Entry:
    """The answer before it has said anything: it restarts where the message that it follows was
    not run by itself."""
    restarts = not new and prompt != line.token_ids
    before = prompt if restarts else []
    return Entry({"role": "assistant", "content": ""}, before, restarts, text_key)


def carried(line: Line, text_key: str) -> list[Entry]:
    """All of a line, for another store: its tokens go with the message up to which they are
    known."""
    found = [Entry(message) for message in line.messages]
    for known, num_messages in (
        (line.history and line.history.token_ids, line.history.num_messages if line.history else 0),
        (line.token_ids, len(line.messages)),
    ):
        if known and num_messages:
            message = line.messages[num_messages - 1]
            found[num_messages - 1] = Entry(message, known, restarts=True, text_key=text_key)
    return found


def instructed(request: GenerateRequest, instructions: str) -> GenerateRequest:
    """With a system message of this request's own, in the place of one that leads."""
    messages = request.messages
    if messages is None:
        return request
    replaced = 1 if messages and messages[0].get("role") in ("system", "developer") else 0
    history = request.history
    if history is not None:
        num_messages = history.num_messages + 1 - replaced
        history = History(history.token_ids, num_messages)
    system = {"role": "system", "content": instructions}
    return dataclasses.replace(request, messages=[system, *messages[replaced:]], history=history)


def full(error: PromptTooLong, line: Line) -> SessionFull:
    num_tokens = max(error.num_tokens, line.num_tokens + 1)
    return SessionFull(error.message, num_tokens=num_tokens, history_tokens=line.num_tokens)


def _text(message: Message) -> str:
    content = message.get("content")
    if isinstance(content, list):
        return "\n".join(str(part.get("text", "")) for part in content)
    return content or ""
