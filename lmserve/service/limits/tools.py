"""Of the functions that a model may call, and of its reasoning before."""

from __future__ import annotations

import re

import msgspec

from lmserve.errors import InvalidField
from lmserve.service.limits.field import check_count, check_range, name_of
from lmserve.types import GenerateRequest, Tool

MAX_TOOLS = 128
MAX_TOOLS_BYTES = 2**20  # of all their schemas and descriptions, as JSON
_NAME = re.compile(r"[a-zA-Z0-9_.-]{1,64}")


def check_tools(request: GenerateRequest) -> None:
    """The functions, and which of them must be called. What a schema may say is the grammar's."""
    param = name_of(request, "tools")
    check_count(request.tools, MAX_TOOLS, param, "functions")
    seen: set[str] = set()
    num_bytes = 0
    for index, tool in enumerate(request.tools):
        _check_name(tool, f"{param}[{index}]", seen)
        num_bytes += _num_bytes(tool, f"{param}[{index}]")
    if num_bytes > MAX_TOOLS_BYTES:
        raise InvalidField(
            f"{param} take {num_bytes} bytes of JSON: at most {MAX_TOOLS_BYTES}", param=param
        )
    _check_choice(request, seen)


def _check_name(tool: Tool, param: str, seen: set[str]) -> None:
    if not _NAME.fullmatch(tool.name):
        raise InvalidField(
            f"the name of {param} is {tool.name[:80]!r}: it must have 1 to 64 letters, digits, "
            "underscores, dashes or dots",
            param=param,
        )
    if tool.name in seen:
        raise InvalidField(
            f"{param} has the name {tool.name!r} of one before it: give each its own", param=param
        )
    seen.add(tool.name)


def _num_bytes(tool: Tool, param: str) -> int:
    try:
        return len(msgspec.json.encode((tool.description, tool.parameters)))
    except (RecursionError, TypeError, ValueError) as error:
        raise InvalidField(f"{param} cannot be written as JSON: {error}", param=param) from error


def _check_choice(request: GenerateRequest, names: set[str]) -> None:
    choice, param = request.tool_choice, name_of(request, "tool_choice")
    if choice.name is not None and choice.name not in names:
        raise InvalidField(
            f"{param} names the function {choice.name[:80]!r}, which is not among the tools",
            param=param,
        )
    if choice.mode == "required" and not names:
        raise InvalidField(f"{param} wants a call, but there are no tools: give some", param=param)


def check_thinking(request: GenerateRequest, max_model_len: int) -> None:
    if request.thinking_budget is not None:
        name = name_of(request, "thinking_budget")
        check_range(request.thinking_budget, 0, max_model_len, name, "; leave it out for no limit")
