"""What a chat template can show, found out by trying it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from lmserve.errors import RequestError
from lmserve.text.tool_messages import Abilities, Message

# renders messages and tools; raises RequestError
Render = Callable[[list[Message], list[dict[str, Any]] | None], str]

_NAME, _KEY, _RESULT, _SYSTEM = "probe_function", "probe_key", "probe_result", "probe_system"
_LONG_ID, _SHORT_ID = "call_0123456789abcdef", "a1b2c3d4e"
_USER: Message = {"role": "user", "content": "hello"}
_TOOL = {
    "type": "function",
    "function": {
        "name": _NAME,
        "description": "It does something.",
        "parameters": {"type": "object", "properties": {}},
    },
}


def abilities_of(render: Render) -> Abilities:
    def tried(messages: list[Message]) -> str:
        try:
            return render(messages, [_TOOL])
        except RequestError:
            return ""

    tools = _NAME in tried([_USER])
    system = _SYSTEM in tried([{"role": "system", "content": _SYSTEM}, _USER])
    for id in (_LONG_ID, _SHORT_ID):
        calls = _calls(tried, id)
        if calls is not None:
            arguments: Any = {_KEY: 1} if calls == "object" else f'{{"{_KEY}": 1}}'
            results = _RESULT in tried(_called(id, arguments))
            return Abilities(tools, calls, results, id == _SHORT_ID, system)
    told = {"role": "assistant", "content": "a call"}
    results = _RESULT in tried([_USER, told, {"role": "tool", "content": _RESULT}])
    return Abilities(tools=tools, results=results, system=system)


def _calls(tried: Callable[[list[Message]], str], id: str) -> Literal["object", "text"] | None:
    """How arguments are taken: so that they are shown as JSON."""
    if _is_json(tried(_called(id, {_KEY: 1}))):
        return "object"
    if _is_json(tried(_called(id, f'{{"{_KEY}": 1}}'))):
        return "text"
    return "object" if _KEY in tried(_called(id, {_KEY: 1})) else None


def _is_json(rendered: str) -> bool:
    return f'{{"{_KEY}":1}}' in rendered.replace(" ", "")


def _called(id: str, arguments: Any) -> list[Message]:
    function = {"name": _NAME, "arguments": arguments}
    return [
        _USER,
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"id": id, "type": "function", "function": function}],
        },
        {"role": "tool", "name": _NAME, "tool_call_id": id, "content": _RESULT},
    ]
