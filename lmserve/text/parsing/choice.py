"""Which forms of calls and reasoning a model's answers have: by name, or by its chat template."""

from __future__ import annotations

from dataclasses import dataclass

from lmserve.errors import SettingsError
from lmserve.text.parsing.forms import (
    ARGS,
    CALL_ALIASES,
    CALL_FORMS,
    HERMES,
    INTERNLM,
    JSON,
    LLAMA3,
    MISTRAL,
    MISTRAL_LIST,
    MISTRAL_NAMED,
    REASONING_ALIASES,
    REASONING_FORMS,
    CallForm,
    ReasoningForm,
)


@dataclass(frozen=True, slots=True)
class AnswerForms:
    calls: CallForm | None = None  # None: calls are not told apart, and tools are refused
    reasoning: ReasoningForm | None = None  # None: it does not think, or it is not told apart


def answer_forms(source: str | None, tool_call_parser: str, reasoning_parser: str) -> AnswerForms:
    """`source`: the chat template's. The settings are `auto`, `none` or a name. Raises
    SettingsError."""
    return AnswerForms(
        _call_form(source or "", tool_call_parser), _reasoning_form(source or "", reasoning_parser)
    )


def _call_form(source: str, setting: str) -> CallForm | None:
    name = setting.lower()
    if name == "none":
        return None
    if name != "auto":
        form = CALL_FORMS.get(CALL_ALIASES.get(name, name))
        if form is None:
            raise _unknown("--tool-call-parser", setting, [*CALL_FORMS, *CALL_ALIASES])
        return form
    if MISTRAL in source:
        return MISTRAL_NAMED if ARGS in source else MISTRAL_LIST
    if "<tool_call>" in source:
        return HERMES
    if "<|action_start|>" in source:
        return INTERNLM
    # Llama 3.2's own template names no mark
    if "<|python_tag|>" in source or ("<|start_header_id|>" in source and "ipython" in source):
        return LLAMA3
    return JSON


def _reasoning_form(source: str, setting: str) -> ReasoningForm | None:
    name = setting.lower()
    if name == "none":
        return None
    if name != "auto":
        form = REASONING_FORMS.get(REASONING_ALIASES.get(name, name))
        if form is None:
            raise _unknown("--reasoning-parser", setting, [*REASONING_FORMS, *REASONING_ALIASES])
        return form
    return next((form for form in REASONING_FORMS.values() if form.end in source), None)


def _unknown(flag: str, value: str, known: list[str]) -> SettingsError:
    return SettingsError(
        f"{flag} {value}: no parser has this name; give auto, none or one of "
        f"{', '.join(dict.fromkeys(known))}"
    )
