"""Items of a response: what an answer holds, and what its input was."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType, field

from lmserve.protocol.logprobs import ChatTokenLogprob

ItemStatus = Literal["in_progress", "completed", "incomplete"]


# --- of the output ------------------------------------------------------------------------


class ResponseOutputText(Struct, kw_only=True, tag_field="type", tag="output_text"):
    """A text of the answer."""

    text: str
    annotations: list[dict[str, Any]] = field(default_factory=list)
    logprobs: Annotated[
        list[ChatTokenLogprob],
        Meta(description="Where they were asked for, until the answer's events are forgotten."),
    ] = field(default_factory=list)


class ResponseReasoningText(Struct, kw_only=True, tag_field="type", tag="reasoning_text"):
    """A text of the reasoning."""

    text: str


class ResponseOutputMessage(Struct, kw_only=True, tag_field="type", tag="message"):
    """What is said to the user."""

    id: Annotated[str, Meta(description="The first one's is that of the answer's message.")]
    role: Literal["assistant"] = "assistant"
    status: ItemStatus
    content: list[ResponseOutputText]


class ResponseOutputReasoning(Struct, kw_only=True, tag_field="type", tag="reasoning"):
    """What the model thought."""

    id: str
    summary: Annotated[list[dict[str, Any]], Meta(description="None is made: always empty.")] = (
        field(default_factory=list)
    )
    content: list[ResponseReasoningText]
    status: ItemStatus


class ResponseFunctionCall(Struct, kw_only=True, tag_field="type", tag="function_call"):
    """A function that the model calls. Whoever asked runs it, and sends its output."""

    id: str
    call_id: Annotated[str, Meta(description="Its output, `function_call_output`, names it.")]
    name: str
    arguments: Annotated[str, Meta(description="JSON, as the model wrote it.")]
    status: ItemStatus


ResponseOutputItem = ResponseOutputMessage | ResponseOutputReasoning | ResponseFunctionCall
ResponsePart = ResponseOutputText | ResponseReasoningText


# --- of the input -------------------------------------------------------------------------


class ResponseItemText(Struct, kw_only=True):
    """Text of an item."""

    type: Literal["input_text", "output_text", "reasoning_text"]
    text: str
    annotations: list[dict[str, Any]] | UnsetType = UNSET


class ResponseItem(Struct, kw_only=True):
    """One item that was the input."""

    id: str
    type: Literal["message", "reasoning", "function_call", "function_call_output"]
    role: Literal["user", "assistant", "system", "developer"] | UnsetType = UNSET
    content: list[ResponseItemText] | UnsetType = UNSET
    summary: list[dict[str, Any]] | UnsetType = UNSET
    call_id: str | UnsetType = UNSET
    name: str | UnsetType = UNSET
    arguments: str | UnsetType = UNSET
    output: str | UnsetType = UNSET
    status: ItemStatus = "completed"


class ResponseItemList(Struct, kw_only=True):
    """Items that were the input."""

    object: Literal["list"] = "list"
    data: list[ResponseItem]
    first_id: str | None
    last_id: str | None
    has_more: Annotated[bool, Meta(description="More come with `after` set to `last_id`.")]
