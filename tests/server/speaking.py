"""A model that thinks and calls functions, as its answers are written."""

from __future__ import annotations

from dataclasses import replace

from lmserve.settings import Settings

THOUGHT = "<think>\nLet me see.\n</think>\n\n"
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"place": "Paris"}}\n</tool_call>'
PARAMETERS = {
    "type": "object",
    "properties": {"place": {"type": "string"}},
    "required": ["place"],
    "additionalProperties": False,
}


def speaking(settings: Settings) -> Settings:
    """With the parsers of such a model."""
    server = replace(settings.server, reasoning_parser="think", tool_call_parser="hermes")
    return replace(settings, server=server)


def pieces(text: str, size: int = 7) -> list[str]:
    return [text[start : start + size] for start in range(0, len(text), size)]
