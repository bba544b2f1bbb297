"""What Anthropic's messages hold, made into the messages that chat templates read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from lmserve.errors import InvalidField

CacheControl = Annotated[
    dict[str, Any] | None, Meta(description="Accepted, not used: every prompt is cached.")
]
_FAILED = "Error: "  # before the result of a call that failed


class ResultBlock(Struct, kw_only=True):
    """One part of a call's result."""

    type: Annotated[str, Meta(description="`text`: the models served here read text only.")]
    text: str | None = None
    cache_control: CacheControl = None
    citations: Annotated[Any, Meta(description="Accepted, not used.")] = None


class InputBlock(Struct, kw_only=True):
    """One part of what is said, thought, called or found."""

    type: Annotated[
        str,
        Meta(
            description="`text`; of the assistant also `thinking`, `redacted_thinking` (not used) "
            "and `tool_use`; of the user also `tool_result`."
        ),
    ]
    text: str | None = None
    thinking: Annotated[str | None, Meta(description="Given to the chat template.")] = None
    signature: Annotated[str | None, Meta(description="Accepted, not checked.")] = None
    data: Annotated[str | None, Meta(description="Accepted, not used.")] = None
    id: Annotated[str | None, Meta(description="Of a `tool_use`, any text.")] = None
    name: Annotated[str | None, Meta(description="The function that was called.")] = None
    input: Annotated[dict[str, Any] | None, Meta(description="Its arguments.")] = None
    caller: Annotated[dict[str, Any] | None, Meta(description="Accepted, not used.")] = None
    tool_use_id: Annotated[str | None, Meta(description="Of the call that has this result.")] = None
    content: Annotated[
        str | list[ResultBlock] | None, Meta(description="The result: a text, or its parts.")
    ] = None
    is_error: Annotated[
        bool | None, Meta(description="The call failed: the model is told so before the result.")
    ] = None
    cache_control: CacheControl = None
    citations: Annotated[Any, Meta(description="Accepted, not used.")] = None


class InputMessage(Struct, kw_only=True):
    """What one side said. Neighbours of one role are read as one message."""

    role: Literal["user", "assistant", "system"]
    content: Annotated[str | list[InputBlock], Meta(description="The text, or its parts.")]


_Placed = tuple[InputBlock, str]  # and what the client calls it


def chat_messages(
    messages: Sequence[InputMessage], system: str | Sequence[InputBlock] | None
) -> tuple[list[dict[str, Any]], bool]:
    """As chat templates read them; whether the last is an answer's beginning. Raises
    InvalidField."""
    turns = _turns(messages)
    if not turns:
        raise InvalidField("messages is empty: give at least one message", param="messages")
    continues = turns[-1][0] == "assistant"
    if continues and len(turns) == 1:
        raise InvalidField(
            "messages has nothing to answer: give a message of the user before the assistant's, "
            "which the answer would go on from",
            param="messages",
        )
    begun = [_begun(turns.pop()[1])] if continues else []
    made = [message for role, blocks in turns for message in _OF_ROLE[role](blocks)]
    if system:
        made = _told(_placed(system, "system"), "system") + made
    return made + begun, continues


def _turns(messages: Sequence[InputMessage]) -> list[tuple[str, list[_Placed]]]:
    """Role and blocks, no role twice in a row."""
    turns: list[tuple[str, list[_Placed]]] = []
    for index, message in enumerate(messages):
        blocks = _placed(message.content, f"messages[{index}].content")
        if turns and turns[-1][0] == message.role:
            turns[-1][1].extend(blocks)
        else:
            turns.append((message.role, blocks))
    return turns


def _placed(content: str | Sequence[InputBlock], where: str) -> list[_Placed]:
    if isinstance(content, str):
        return [(InputBlock(type="text", text=content), where)]
    return [(block, f"{where}[{index}]") for index, block in enumerate(content)]


def _system(blocks: Sequence[_Placed]) -> list[dict[str, Any]]:
    return _told(blocks, "system")


def _user(blocks: Sequence[_Placed]) -> list[dict[str, Any]]:
    """Results of calls are messages of their own."""
    made: list[dict[str, Any]] = []
    said: list[_Placed] = []
    for block, where in blocks:
        if block.type != "tool_result":
            said.append((block, where))
            continue
        if said:
            made += _told(said, "user")
            said = []
        made.append(_result(block, where))
    return made + _told(said, "user") if said or not made else made


def _assistant(blocks: Sequence[_Placed]) -> list[dict[str, Any]]:
    said: list[_Placed] = []
    thoughts: list[str] = []
    calls: list[dict[str, Any]] = []
    for block, where in blocks:
        match block.type:
            case "thinking":
                thoughts.append(block.thinking or "")
            case "redacted_thinking":
                pass
            case "tool_use":
                calls.append(_call(block, where))
            case _:
                said.append((block, where))
    message: dict[str, Any] = {"role": "assistant", "content": ""}
    if said:
        (message,) = _told(said, "assistant")
    if thoughts:
        message["reasoning_content"] = "\n".join(thoughts)
    if calls:
        message["tool_calls"] = calls
    return [message]


_OF_ROLE = {"system": _system, "user": _user, "assistant": _assistant}


def _begun(blocks: Sequence[_Placed]) -> dict[str, Any]:
    """The answer's beginning: what it thought before is not shown to it again."""
    thinks = {"thinking", "redacted_thinking"}
    said = [(block, where) for block, where in blocks if block.type not in thinks]
    if blocks and not said:
        where = blocks[-1][1]
        raise InvalidField(
            f"{where} ends the messages in thinking, which cannot be gone on with: leave the last "
            "message out",
            param=where,
        )
    for block, where in said:
        if block.type == "tool_use":
            raise InvalidField(
                f"{where} calls a function, and nothing follows: send its result in a "
                "tool_result, in a message of the user",
                param=where,
            )
    return {"role": "assistant", "content": "".join(_text(*placed) for placed in said)}


def _told(blocks: Sequence[_Placed], role: str) -> list[dict[str, Any]]:
    texts = [_text(*placed) for placed in blocks]
    if len(texts) == 1:
        return [{"role": role, "content": texts[0]}]
    return [{"role": role, "content": [{"type": "text", "text": text} for text in texts]}]


def _text(block: InputBlock | ResultBlock, where: str) -> str:
    if block.type != "text":
        raise InvalidField(
            f"{where}.type is {block.type[:50]!r}, which is not supported here: send blocks of "
            "type 'text'",
            param=f"{where}.type",
        )
    return _required(block.text, f"{where}.text")


def _call(block: InputBlock, where: str) -> dict[str, Any]:
    function = {"name": _required(block.name, f"{where}.name"), "arguments": block.input or {}}
    return {"id": _required(block.id, f"{where}.id"), "type": "function", "function": function}


def _result(block: InputBlock, where: str) -> dict[str, Any]:
    content = block.content or ""
    if not isinstance(content, str):
        content = "\n".join(
            _text(part, f"{where}.content[{index}]") for index, part in enumerate(content)
        )
    return {
        "role": "tool",
        "tool_call_id": _required(block.tool_use_id, f"{where}.tool_use_id"),
        "content": _FAILED + content if block.is_error else content,
    }


def _required(value: str | None, param: str) -> str:
    if value is None:
        raise InvalidField(f"{param} is required", param=param)
    return value
