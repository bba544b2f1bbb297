"""Functions that a model may call, as the three APIs write them, and its calls as chat does.

What is read here is only their shape: names, schemas and numbers are `lmserve.service.limits`'
to judge.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

import orjson
from msgspec import Meta, Struct

from lmserve.errors import InvalidField
from lmserve.types import Tool, ToolChoice

# `GenerateRequest.params` of the APIs whose tools are flat: chat's name is the default.
RESPONSES_PARAMS = {"tool_parameters": "tools[{}].parameters"}
ANTHROPIC_PARAMS = {"tool_parameters": "tools[{}].input_schema"}

_Name = Annotated[str, Meta(description="1 to 64 of letters, digits, `_`, `.` and `-`.")]
_About = Annotated[str | None, Meta(description="What it does and when to call it.")]
_Schema = Annotated[
    dict[str, Any] | None,
    Meta(description="The JSON schema of its arguments, an object. Default: any object."),
]
_Strict = Annotated[
    bool | None, Meta(description="Arguments always obey the schema, however they were asked for.")
]


class ChatFunction(Struct, kw_only=True):
    """A function that the model may call."""

    name: _Name
    description: _About = None
    parameters: _Schema = None
    strict: _Strict = None


class ChatTool(Struct, kw_only=True):
    """A tool of a chat: a function."""

    type: Annotated[str, Meta(description="`function`.")] = "function"
    function: ChatFunction


class ResponseTool(Struct, kw_only=True, omit_defaults=True):
    """A tool of a response: a function."""

    type: Annotated[str, Meta(description="`function`.")]
    name: Annotated[_Name | None, Meta(description="Of the function.")] = None
    description: _About = None
    parameters: _Schema = None
    strict: _Strict = None


class AnthropicTool(Struct, kw_only=True):
    """A tool of a message: a function."""

    name: _Name
    description: _About = None
    input_schema: _Schema = None
    type: Annotated[str | None, Meta(description="`custom`, the default.")] = None
    strict: _Strict = None
    cache_control: Annotated[
        dict[str, Any] | None, Meta(description="Accepted, not used: every prompt is cached.")
    ] = None


class FunctionCall(Struct, kw_only=True):
    """What is called, with what."""

    name: str
    arguments: Annotated[str, Meta(description="JSON, as the model wrote it.")]


class ToolCall(Struct, kw_only=True):
    """A call that the model makes."""

    id: str
    type: Literal["function"] = "function"
    function: FunctionCall


class FunctionCallDelta(Struct, kw_only=True, omit_defaults=True):
    """What a chunk adds to a function call."""

    name: str | None = None
    arguments: str | None = None


class ToolCallDelta(Struct, kw_only=True, omit_defaults=True):
    """What a chunk adds to call `index` of the answer."""

    index: int
    id: Annotated[str | None, Meta(description="In the call's first chunk only.")] = None
    type: Literal["function"] | None = None
    function: FunctionCallDelta


Tools = tuple[tuple[Tool, ...], ToolChoice]


def chat_tools(
    tools: Sequence[ChatTool] | None,
    choice: str | Mapping[str, Any] | None,
    parallel: bool | None,
) -> Tools:
    """`tools`, `tool_choice` and `parallel_tool_calls` of a chat. Raises InvalidField."""
    made = []
    for index, tool in enumerate(tools or ()):
        _check_type(tool.type, index)
        made.append(_tool(tool.function, tool.function.parameters))
    return _openai(made, choice, parallel, nested=True)


def response_tools(
    tools: Sequence[ResponseTool] | None,
    choice: str | Mapping[str, Any] | None,
    parallel: bool | None,
) -> Tools:
    """The same of a response."""
    made = []
    for index, tool in enumerate(tools or ()):
        _check_type(tool.type, index)
        if tool.name is None:
            where = f"tools[{index}].name"
            raise InvalidField(f"{where} is required: the function's name", param=where)
        made.append(_tool(tool, tool.parameters))
    return _openai(made, choice, parallel, nested=False)


def anthropic_tools(
    tools: Sequence[AnthropicTool] | None, choice: Mapping[str, Any] | None
) -> Tools:
    """`tools` and `tool_choice` of a message. Raises InvalidField."""
    made = []
    for index, tool in enumerate(tools or ()):
        _check_type(tool.type or "custom", index, known="custom")
        made.append(_tool(tool, tool.input_schema))
    if choice is None:
        return tuple(made), ToolChoice()
    kind, parallel = choice.get("type"), not choice.get("disable_parallel_tool_use")
    if kind == "tool":
        name = _name(choice, "tool_choice.name")
        return tuple(made), ToolChoice("required", name, parallel)
    modes: dict[Any, Literal["none", "auto", "required"]]
    modes = {"auto": "auto", "any": "required", "none": "none"}
    if not isinstance(kind, str) or kind not in modes:
        raise InvalidField(
            "tool_choice.type must be one of auto, any, tool, none", param="tool_choice.type"
        )
    return tuple(made), ToolChoice(modes[kind], None, parallel)


def _openai(
    tools: list[Tool], choice: str | Mapping[str, Any] | None, parallel: bool | None, nested: bool
) -> Tools:
    made, allowed = _choice(choice, nested)
    if allowed is not None:
        if unknown := allowed - {tool.name for tool in tools}:
            raise InvalidField(
                f"tool_choice allows {min(unknown)[:64]!r}, which is not among tools",
                param="tool_choice",
            )
        tools = [tool for tool in tools if tool.name in allowed]
    return tuple(tools), replace(made, parallel=parallel is not False)


def _choice(
    choice: str | Mapping[str, Any] | None, nested: bool
) -> tuple[ToolChoice, set[str] | None]:
    """The choice, and the names of the tools that it leaves (None: all)."""
    if choice is None:
        return ToolChoice(), None
    if isinstance(choice, str):
        return ToolChoice(_mode(choice, "tool_choice")), None
    match choice.get("type"):
        case "function":
            where = "tool_choice.function" if nested else "tool_choice"
            function = choice.get("function") if nested else choice
            return ToolChoice("required", _name(function, f"{where}.name")), None
        case "allowed_tools":
            where = "tool_choice.allowed_tools" if nested else "tool_choice"
            allowed = choice.get("allowed_tools") if nested else choice
            if not isinstance(allowed, Mapping) or not isinstance(allowed.get("tools"), list):
                raise InvalidField(f"{where}.tools must be a list of tools", param=f"{where}.tools")
            mode = _mode(allowed.get("mode", "auto"), f"{where}.mode", ("auto", "required"))
            return ToolChoice(mode), {
                _name(_function(tool, nested), f"{where}.tools[{index}].name")
                for index, tool in enumerate(allowed["tools"])
            }
        case _:
            raise InvalidField(
                "tool_choice.type must be function (with its name) or allowed_tools",
                param="tool_choice.type",
            )


def _mode(
    value: Any, where: str, known: Sequence[Literal["none", "auto", "required"]] = ()
) -> Literal["none", "auto", "required"]:
    known = known or ("none", "auto", "required")
    for mode in known:
        if value == mode:
            return mode
    function = ", or an object naming a function" if where == "tool_choice" else ""
    raise InvalidField(f"{where} must be one of {', '.join(known)}{function}", param=where)


def _function(tool: Any, nested: bool) -> Any:
    return tool.get("function") if nested and isinstance(tool, Mapping) else tool


def _name(function: Any, where: str) -> str:
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(name, str):
        raise InvalidField(f"{where} must name a function", param=where)
    return name


def _check_type(kind: str, index: int, *, known: str = "function") -> None:
    if kind != known:
        where = f"tools[{index}].type"
        raise InvalidField(
            f"{where} is {kind[:50]!r}: functions are the only tools here, type {known!r}",
            param=where,
        )


def _tool(given: ChatFunction | ResponseTool | AnthropicTool, schema: Any) -> Tool:
    assert given.name is not None
    return Tool(given.name, given.description, schema, bool(given.strict))


def object_of(arguments: str) -> dict[str, Any]:
    """Arguments as the object that some APIs send. What the model wrote that is none is the text
    under a name that says so, as Anthropic advises."""
    try:
        value = orjson.loads(arguments)
        orjson.dumps(value)  # not too deep to be sent
    except (orjson.JSONDecodeError, TypeError):
        value = None
    return value if isinstance(value, dict) else {"INVALID_JSON": arguments}
