"""What a turn adds to a conversation's line: which messages are new, what is run, what is kept."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from contextlib import suppress

from lmserve.errors import InvalidField
from lmserve.service.store import Entry, Line, Message, SessionKey
from lmserve.service.transcript import Transcript
from lmserve.text.chat import normalise_messages
from lmserve.types import GenerateRequest


def new_messages(line: Line, request: GenerateRequest) -> list[Message]:
    """Those of the request that the line does not have. A client may send the whole history
    again: where it repeats the line from its start, only the rest is new."""
    if request.text is not None:
        return [{"role": "user", "content": request.text}]
    assert request.messages is not None, "a session is given messages or text"
    normalise_messages(request.messages, join_parts=False, developer=True)  # refuses what is none
    messages = not_repeated(line, request.messages) or request.messages
    if not messages:
        param = request.params.get("messages", "messages")
        raise InvalidField(f"{param} is empty: give at least one message", param=param)
    return messages


def not_repeated(line: Line, messages: Sequence[Message]) -> list[Message]:
    num_held = len(line.messages)
    if num_held and list(messages[:num_held]) == line.messages:
        return list(messages[num_held:])
    return list(messages)


def extended(
    request: GenerateRequest, key: SessionKey, line: Line, new: Sequence[Message]
) -> GenerateRequest:
    """The request with the line before it."""
    session_id = request.session_id
    if session_id is None:
        with suppress(ValueError):
            session_id = int(key.id)
    request = dataclasses.replace(
        request, owner=key.owner, session_id=session_id, history=line.history
    )
    if request.text is None:
        return dataclasses.replace(request, messages=[*line.messages, *new])
    num_known = 0 if line.history is None else line.history.num_messages
    texts = [_text(message) for message in line.messages[num_known:]]
    return dataclasses.replace(request, text="".join((*texts, request.text)))


def entries(line: Line, new: Sequence[Message], transcript: Transcript) -> list[Entry]:
    """The new messages and their answer, with the tokens that were run. May take a moment."""
    prompt, text_key = transcript.prompt_ids, transcript.text_key
    held = line.history
    goes_on = (
        held is not None
        and held.num_messages == len(line.messages)
        and len(new) == 1
        and prompt[: len(held.token_ids)] == held.token_ids
    )
    added = prompt[len(held.token_ids) :] if held is not None and goes_on else prompt
    answer = {"role": "assistant", "content": transcript.answer()}
    return [
        *map(Entry, new[:-1]),
        Entry(new[-1], added, restarts=not goes_on, text_key=text_key),
        Entry(answer, transcript.answer_ids(), text_key=text_key),
    ]


def _text(message: Message) -> str:
    content = message.get("content")
    if isinstance(content, list):
        return "\n".join(str(part.get("text", "")) for part in content)
    return content or ""
