"""Tools and choices as the three APIs write them."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from lmserve.errors import InvalidField
from lmserve.protocol.tools import (
    AnthropicTool,
    ChatFunction,
    ChatTool,
    ResponseTool,
    anthropic_tools,
    chat_tools,
    response_tools,
)
from lmserve.types import Tool, ToolChoice

SCHEMA = {"type": "object"}
MADE = (Tool("f", "It does.", SCHEMA, True), Tool("g"))
FLAT = [{"name": "f", "description": "It does.", "parameters": SCHEMA, "strict": True}]
FLAT += [{"name": "g"}]
CHAT = msgspec.convert([{"type": "function", "function": f} for f in FLAT], list[ChatTool])
RESPONSE = msgspec.convert([{"type": "function", **f} for f in FLAT], list[ResponseTool])
ANTHROPIC = [AnthropicTool(name="f", description="It does.", input_schema=SCHEMA, strict=True)]
ANTHROPIC += [AnthropicTool(name="g")]
REQUIRED = ToolChoice("required")


@pytest.mark.parametrize(
    "choice,made",
    [
        (None, ToolChoice()),
        ("none", ToolChoice("none")),
        ("required", REQUIRED),
        ({"type": "function", "function": {"name": "g"}}, ToolChoice("required", "g")),
    ],
)
def test_of_a_chat(choice: Any, made: ToolChoice) -> None:
    assert chat_tools(CHAT, choice, None) == (MADE, made)


def test_of_a_response() -> None:
    named = {"type": "function", "name": "g"}
    assert response_tools(RESPONSE, named, False) == (MADE, ToolChoice("required", "g", False))


@pytest.mark.parametrize(
    "choice,made",
    [
        (None, ToolChoice()),
        ({"type": "any"}, REQUIRED),
        ({"type": "none"}, ToolChoice("none")),
        ({"type": "auto", "disable_parallel_tool_use": True}, ToolChoice(parallel=False)),
        ({"type": "tool", "name": "g"}, ToolChoice("required", "g")),
    ],
)
def test_of_a_message(choice: Any, made: ToolChoice) -> None:
    assert anthropic_tools(ANTHROPIC, choice) == (MADE, made)


def test_some_of_the_tools_may_be_allowed() -> None:
    allowed = {"mode": "required", "tools": [{"type": "function", "function": {"name": "g"}}]}
    choice = {"type": "allowed_tools", "allowed_tools": allowed}
    assert chat_tools(CHAT, choice, None) == (MADE[1:], REQUIRED)
    flat = {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "f"}]}
    assert response_tools(RESPONSE, flat, None) == (MADE[:1], ToolChoice())


def test_any_number_of_them_is_looked_up() -> None:
    """Their number is only checked later."""
    names = [f"f{index}" for index in range(50_000)]
    tools = [ChatTool(function=ChatFunction(name=name)) for name in names]
    allowed = {"tools": [{"function": {"name": name}} for name in reversed(names)]}
    made, _ = chat_tools(tools, {"type": "allowed_tools", "allowed_tools": allowed}, None)
    assert [tool.name for tool in made] == names


@pytest.mark.parametrize(
    "choice,param",
    [
        ("maybe", "tool_choice"),
        ({"type": "x"}, "tool_choice.type"),
        ({}, "tool_choice.type"),
        ({"type": "function"}, "tool_choice.function.name"),
        ({"type": "function", "function": {"name": 5}}, "tool_choice.function.name"),
        ({"type": "allowed_tools"}, "tool_choice.allowed_tools.tools"),
        (
            {"type": "allowed_tools", "allowed_tools": {"tools": [{"function": {"name": "h"}}]}},
            "tool_choice",
        ),
        (
            {"type": "allowed_tools", "allowed_tools": {"tools": [5]}},
            "tool_choice.allowed_tools.tools[0].name",
        ),
    ],
)
def test_choices_that_are_none(choice: Any, param: str) -> None:
    with pytest.raises(InvalidField) as error:
        chat_tools(CHAT, choice, None)
    assert error.value.param == param


def test_other_tools_are_refused() -> None:
    with pytest.raises(InvalidField, match=r"tools\[0\]\.type is 'web_search'"):
        response_tools([ResponseTool(type="web_search")], None, None)
    with pytest.raises(InvalidField, match="functions are the only tools"):
        anthropic_tools([AnthropicTool(name="x", type="bash_20250124")], None)
    with pytest.raises(InvalidField, match=r"tools\[0\]\.name is required"):
        response_tools([ResponseTool(type="function")], None, None)
