"""Anthropic's messages as they are answered: their blocks, and how they are counted."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from lmserve.protocol.tools import object_of
from lmserve.types import CallArguments, CallBegun, Content, Part, Reasoning, TextDelta, Usage

StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use", "pause_turn"]

# Nobody signs what models think here, and nobody checks it: clients expect some text.
SIGNATURE = "unsigned"


class ThinkingTokens(Struct, kw_only=True):
    thinking_tokens: int


class MessagesUsage(Struct, kw_only=True):
    """Tokens of one answer."""

    input_tokens: Annotated[int, Meta(description="Of the prompt, those that were run.")]
    cache_creation_input_tokens: Literal[0] = 0
    cache_read_input_tokens: Annotated[
        int, Meta(description="Of the prompt, those whose KV was found in the prefix tree.")
    ]
    output_tokens: int
    output_tokens_details: Annotated[
        ThinkingTokens | UnsetType, Meta(description="Of an answer that was thought about.")
    ] = UNSET

    @classmethod
    def of(cls, usage: Usage) -> MessagesUsage:
        thought = usage.reasoning_tokens
        return cls(
            input_tokens=usage.prompt_tokens - usage.cached_tokens,
            cache_read_input_tokens=usage.cached_tokens,
            output_tokens=usage.completion_tokens,
            output_tokens_details=ThinkingTokens(thinking_tokens=thought) if thought else UNSET,
        )


class TextBlock(Struct, kw_only=True, tag_field="type", tag="text"):
    """What it says."""

    text: str


class ThinkingBlock(Struct, kw_only=True, tag_field="type", tag="thinking"):
    """What it thinks before it speaks."""

    thinking: Annotated[str, Meta(description="Empty with `display` `omitted`.")]
    signature: Annotated[str, Meta(description="Says nothing here.")] = SIGNATURE


class ToolUseBlock(Struct, kw_only=True, tag_field="type", tag="tool_use"):
    """A function that it calls."""

    id: str
    name: str
    input: Annotated[
        dict[str, Any],
        Meta(
            description="Its arguments. What the model wrote that is no JSON object is the text "
            "under `INVALID_JSON`."
        ),
    ]


Block = TextBlock | ThinkingBlock | ToolUseBlock


class MessagesResponse(Struct, kw_only=True):
    """The assistant's message; whole, without `stream`."""

    id: str
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    model: str
    content: list[Block]
    stop_reason: Annotated[
        StopReason | None,
        Meta(
            description="`pause_turn`: it was ended from outside, by its deadline or the server's "
            "end. Send it back as the last message, and it is gone on with."
        ),
    ] = None
    stop_sequence: Annotated[str | None, Meta(description="The text at which it ended.")] = None
    usage: MessagesUsage


def parts_of(delta: TextDelta) -> list[Part]:
    """What it says, told apart or not."""
    if delta.parts is not None:
        return [*delta.parts]
    return [Content(delta.text)] if delta.text else []


class Blocks:
    """A whole answer's, put together of its parts."""

    def __init__(self, *, shows_thinking: bool):
        self._shows_thinking = shows_thinking
        self._begun: list[tuple[Part, list[str]]] = []  # of each: its first part, all its text

    def add(self, delta: TextDelta) -> None:
        for part in parts_of(delta):
            match part:
                case CallBegun():
                    self._begun.append((part, []))
                case CallArguments(_, text):
                    self._begun[-1][1].append(text)
                case Content(text) | Reasoning(text):
                    if not self._begun or type(self._begun[-1][0]) is not type(part):
                        self._begun.append((part, []))
                    self._begun[-1][1].append(text)

    def made(self) -> list[Block]:
        """At least one."""
        return [self._block(part, "".join(texts)) for part, texts in self._begun] or [
            TextBlock(text="")
        ]

    def _block(self, part: Part, text: str) -> Block:
        match part:
            case CallBegun(_, id, name):
                return ToolUseBlock(id=id, name=name, input=object_of(text))
            case Reasoning():
                return ThinkingBlock(thinking=text if self._shows_thinking else "")
            case _:
                return TextBlock(text=text)
