"""Functions, calls and their results in a conversation, made into what a chat template can show.

What its template cannot show a model is told in words: the functions by a system message, calls
as the text that they were, results as messages of the user.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lmserve.errors import InvalidField
from lmserve.text.parsing.forms import CallForm
from lmserve.types import Tool

Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Abilities:
    """What a chat template can show."""

    tools: bool = False
    calls: Literal["object", "text"] | None = None  # how it takes their arguments
    results: bool = False  # messages of role `tool`
    short_ids: bool = False  # ids of calls must have nine letters and digits
    system: bool = True


def named_results(messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Results with the name of the function, where the call that they answer is there."""
    names: dict[str, str] = {}
    named: list[Mapping[str, Any]] = []
    for message in messages:
        if isinstance(message, Mapping) and message.get("role") == "tool":
            name = names.get(str(message.get("tool_call_id")))
            if name is not None and not message.get("name"):
                message = {**message, "name": name}
        elif isinstance(message, Mapping) and message.get("tool_calls"):
            for call in _listed(message["tool_calls"]):
                function = call.get("function") if isinstance(call, Mapping) else None
                if isinstance(function, Mapping) and isinstance(function.get("name"), str):
                    names[str(call.get("id"))] = function["name"]
        named.append(message)
    return named


def checked_calls(message: Message, where: str) -> Message:
    """The message, its calls in OpenAI's form, their arguments objects where they can be read: a
    text that is no JSON object stays one. Raises InvalidField."""
    if "tool_calls" not in message:
        return message
    calls = message["tool_calls"]
    if calls is not None and not isinstance(calls, list):
        raise InvalidField(f"{where}.tool_calls must be a list", param=f"{where}.tool_calls")
    rest = {key: value for key, value in message.items() if key != "tool_calls"}
    if not calls:
        return rest
    checked = [_call(call, f"{where}.tool_calls[{index}]") for index, call in enumerate(calls)]
    return {**rest, "tool_calls": checked}


def _call(call: Any, where: str) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(name, str) or not name:
        raise InvalidField(
            f"{where} must be a call such as {{'id': …, 'type': 'function', 'function': {{'name': "
            "…, 'arguments': '{…}'}}}",
            param=where,
        )
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        arguments = _parsed(arguments)
    made = {"type": "function", "function": {"name": name, "arguments": arguments or {}}}
    return {"id": str(call["id"]), **made} if call.get("id") is not None else made


def _parsed(arguments: str) -> Any:
    """The object that the text holds; the text itself where it is none."""
    try:
        value = json.loads(arguments) if arguments.strip() else {}
    except (ValueError, RecursionError):
        return arguments
    return value if isinstance(value, dict) else arguments


def shown(
    messages: list[Message], tools: Sequence[Tool], abilities: Abilities, form: CallForm | None
) -> list[Message]:
    """The messages as this template can show them; `tools` are told in words where it has none."""
    made: list[Message] = []
    told_results = False  # the last message is of results
    for message in messages:
        if message["role"] == "tool" and not abilities.results:
            text = _result(message)
            if told_results:
                made[-1] = {**made[-1], "content": f"{made[-1]['content']}\n\n{text}"}
            else:
                made.append({"role": "user", "content": text})
            told_results = True
            continue
        told_results = False
        made.append(_shown(message, abilities, form))
    if tools and not abilities.tools:
        made = _with_words(made, _described(tools, form), abilities)
    return made


def _shown(message: Message, abilities: Abilities, form: CallForm | None) -> Message:
    if abilities.short_ids and message.get("tool_call_id") is not None:
        return {**message, "tool_call_id": _short(message["tool_call_id"])}
    if not message.get("tool_calls"):
        return message
    calls = message["tool_calls"]
    if abilities.calls is None:
        texts = [text for text in (text_of(message["content"]), written(calls, form)) if text]
        rest = {key: value for key, value in message.items() if key != "tool_calls"}
        return {**rest, "content": "\n".join(texts)}
    return {**message, "tool_calls": [_shown_call(call, abilities) for call in calls]}


def _shown_call(call: dict[str, Any], abilities: Abilities) -> dict[str, Any]:
    function = call["function"]
    if abilities.calls == "text":
        arguments = _text_of_arguments(function["arguments"])
        call = {**call, "function": {**function, "arguments": arguments}}
    if abilities.short_ids:
        call = {**call, "id": _short(call.get("id", ""))}
    return call


def _text_of_arguments(arguments: Any) -> str:
    if isinstance(arguments, str):
        return arguments
    return json.dumps(arguments, ensure_ascii=False)


def _short(id: Any) -> str:
    """Nine letters and digits, the same for the same id."""
    text = str(id)
    if len(text) == 9 and text.isascii() and text.isalnum():
        return text
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:9]


def written(calls: Sequence[Mapping[str, Any]], form: CallForm | None) -> str:
    """Calls as the model writes them."""
    key = form.arguments if form else "arguments"
    objects = [
        f'{{"name": {json.dumps(call["function"]["name"], ensure_ascii=False)}, "{key}": '
        f"{_text_of_arguments(call['function']['arguments'])}}}"
        for call in calls
    ]
    if form is not None and form.end is not None:
        return "\n".join(f"{form.begin}\n{each}\n{form.end}" for each in objects)
    if form is not None and form.separator:
        return form.separator.join(objects)
    body = objects[0] if len(objects) == 1 else f"[{', '.join(objects)}]"
    if form is not None and form.begin is not None:
        return f"{form.begin}{body if body.startswith('[') else f'[{body}]'}"
    return body


def _result(message: Message) -> str:
    name = message.get("name")
    of = f" of {name}" if isinstance(name, str) and name else ""
    return f"Result{of}:\n{text_of(message['content'])}"


def text_of(content: Any) -> str:
    """Of content that is a text or a list of parts of text."""
    if isinstance(content, str):
        return content
    return "\n".join(str(part.get("text", "")) for part in content)


def as_objects(tools: Sequence[Tool]) -> list[dict[str, Any]]:
    """Functions in OpenAI's form, as templates read them."""
    return [
        {
            "type": "function",
            "function": {
                "name": tool.name,
                "description": tool.description or "",
                "parameters": dict(tool.parameters or {"type": "object", "properties": {}}),
            },
        }
        for tool in tools
    ]


def _described(tools: Sequence[Tool], form: CallForm | None) -> str:
    functions = [each["function"] for each in as_objects(tools)]
    listed = "\n".join(json.dumps(function, ensure_ascii=False) for function in functions)
    example = {"function": {"name": "a_function", "arguments": {"an_argument": "a value"}}}
    several = written([example, example], form)
    return (
        "You can call these functions, each given with the JSON schema of its parameters:\n"
        f"{listed}\n\n"
        "To call one, answer with nothing but the call, in this form:\n"
        f"{written([example], form)}\n"
        f"To call several at once:\n{several}\n"
        "You are then told the results. Where no function is needed, answer in words."
    )


def _with_words(messages: list[Message], words: str, abilities: Abilities) -> list[Message]:
    """And with these words in front: in the system message, or where the template takes none, in
    the first message."""
    first = messages[0] if messages else None
    roles = ("system", "developer") if abilities.system else ("user",)
    if first is not None and first["role"] in roles:
        text = text_of(first["content"])
        both = f"{text}\n\n{words}" if abilities.system else f"{words}\n\n{text}"
        return [{**first, "content": both}, *messages[1:]]
    return [{"role": "system" if abilities.system else "user", "content": words}, *messages]


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
