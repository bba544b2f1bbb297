"""What a turn adds to a conversation's line: which messages are new, what is run, what is kept."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from lmserve.errors import InvalidField
from lmserve.service.prompt import ModelText
from lmserve.service.store_rows import Entry, Line, Message, SessionKey
from lmserve.service.transcript import Transcript
from lmserve.service.tree import check_messages
from lmserve.types import GenerateRequest


def new_messages(line: Line, request: GenerateRequest, *, exact: bool) -> list[Message]:
    """Those of the request that the line does not have. Where they are not meant exactly, a
    client may send the whole history again: if it repeats the line from its start, only the rest
    is new. Where they are, there may be none: the line's last message is answered (again)."""
    if request.text is not None:
        return [{"role": "user", "content": request.text}]
    assert request.messages is not None, "a session is given messages or text"
    check_messages(request.messages)
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
    num_chars = sum([len(str(message["content"])) for message in messages])
    text.check_length(GenerateRequest(messages=messages), num_chars)


def entries(line: Line, new: Sequence[Message], transcript: Transcript) -> list[Entry]:
    """The new messages and their answer, with the tokens that were run. May take a moment."""
    prompt, text_key = transcript.prompt_ids, transcript.text_key
    answer_ids = transcript.answer_ids()
    answer = {"role": "assistant", "content": transcript.answer()}
    if not new:
        if prompt == line.token_ids:
            return [Entry(answer, answer_ids, text_key=text_key)]
        return [Entry(answer, [*prompt, *answer_ids], restarts=True, text_key=text_key)]
    held = line.history
    goes_on = (
        held is not None
        and held.num_messages == len(line.messages)
        and len(new) == 1
        and prompt[: len(held.token_ids)] == held.token_ids
    )
    added = prompt[len(held.token_ids) :] if held is not None and goes_on else prompt
    return [
        *map(Entry, new[:-1]),
        Entry(new[-1], added, restarts=not goes_on, text_key=text_key),
        Entry(answer, answer_ids, text_key=text_key),
    ]


def _text(message: Message) -> str:
    content = message.get("content")
    if isinstance(content, list):
        return "\n".join(str(part.get("text", "")) for part in content)
    return content or ""
