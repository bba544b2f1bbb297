"""How families of models write calls and reasoning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CallForm:
    """Calls follow a mark, or are the whole answer, or either."""

    name: str
    begin: str | None = None  # the mark before calls
    end: str | None = None  # the mark after them
    whole: bool = False  # an answer may be calls alone, without marks
    named: bool = False  # after the mark: a name, [ARGS], the arguments; else an object or a list
    arguments: str = "arguments"  # what the model was taught to call them; any name is read
    separator: str = ""  # between calls

    @property
    def marks(self) -> frozenset[str]:
        more = (ARGS, CALL_ID) if self.begin == MISTRAL else ()
        return frozenset(mark for mark in (self.begin, self.end, *more) if mark)


@dataclass(frozen=True, slots=True)
class ReasoningForm:
    name: str
    begin: str
    end: str


MISTRAL, ARGS, CALL_ID = "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"

HERMES = CallForm("hermes", "<tool_call>", "</tool_call>", separator="\n")
LLAMA3 = CallForm("llama3", "<|python_tag|>", whole=True, arguments="parameters", separator="; ")
MISTRAL_LIST = CallForm("mistral-list", MISTRAL)
MISTRAL_NAMED = CallForm("mistral", MISTRAL, named=True)
INTERNLM = CallForm(
    "internlm", "<|action_start|><|plugin|>", "<|action_end|>", arguments="parameters"
)
JSON = CallForm("json", whole=True)

CALL_FORMS: Mapping[str, CallForm] = {
    form.name: form for form in (HERMES, LLAMA3, MISTRAL_NAMED, MISTRAL_LIST, INTERNLM, JSON)
}
# LMDeploy's names, where they mean the same
CALL_ALIASES = {
    "qwen": "hermes",
    "qwen2d5": "hermes",
    "qwen3": "hermes",
    "llama3_json": "llama3",
    "internlm2": "internlm",
    "generic": "json",
}

THINK = ReasoningForm("think", "<think>", "</think>")
REASONING_FORMS: Mapping[str, ReasoningForm] = {
    form.name: form
    for form in (
        THINK,
        ReasoningForm("magistral", "[THINK]", "[/THINK]"),
        ReasoningForm("seed", "<seed:think>", "</seed:think>"),
        ReasoningForm("command", "<|START_THINKING|>", "<|END_THINKING|>"),
    )
}
REASONING_ALIASES = {
    "default": "think",
    "deepseek-r1": "think",
    "deepseek_r1": "think",
    "qwen-qwq": "think",
    "qwen3": "think",
    "intern-s1": "think",
}
