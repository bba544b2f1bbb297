"""Calls of functions in a conversation, and what these gave: each call is answered before anything
else is said."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lmserve.errors import InvalidField

Message = Mapping[str, Any]


def pending(messages: Sequence[Message]) -> dict[str, str]:
    """The calls at the end of these that have no output yet: ids to names, in their order."""
    for index in range(len(messages) - 1, -1, -1):
        role = messages[index].get("role")
        if role == "assistant":
            return unmet(messages[index], messages[index + 1 :])
        if role != "tool":
            break
    return {}


def unmet(answer: Message, new: Iterable[Message]) -> dict[str, str]:
    """The answer's calls whose outputs are not among the new messages: ids to names."""
    outputs = {m.get("tool_call_id") for m in new if m.get("role") == "tool"}
    return {id: name for id, name in _calls(answer) if id not in outputs}


def check_outputs(line: Sequence[Message], new: Sequence[Message]) -> None:
    """Refuses outputs of calls that are not there, and whatever comes in place of an output.
    Raises InvalidField, of `messages`."""
    waiting = pending(line)
    for message in new:
        role = message.get("role")
        if role == "tool":
            id = message.get("tool_call_id")
            if id not in waiting:
                raise no_call(id)
            del waiting[id]
        elif role == "assistant":
            waiting |= dict(_calls(message))
        else:
            _check_none(waiting)
    _check_none(waiting)


def no_call(id: object) -> InvalidField:
    return InvalidField(
        f"No tool call found for function call output with call_id {str(id)[:70]}: its call must "
        "come before it, and have no output yet.",
        param="messages",
    )


def _check_none(waiting: Iterable[str]) -> None:
    for id in waiting:
        raise InvalidField(
            f"No tool output found for function call {id[:70]}: send an item of type "
            "'function_call_output' with this call_id.",
            param="messages",
        )


def _calls(message: Message) -> list[tuple[str, str]]:
    calls = message.get("tool_calls") or ()
    names = [(call.get("id"), (call.get("function") or {}).get("name", "")) for call in calls]
    return [(id, str(name)) for id, name in names if isinstance(id, str)]
