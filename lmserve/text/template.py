"""Chat templates, rendered in a sandbox with transformers' conventions.

The template comes from the model, its input from strangers: no attribute of a Python object is
in reach, and the output is bounded. What a template raises is the caller's mistake.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError, nodes
from jinja2.environment import Template
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from lmserve.errors import InvalidField, LmserveError, RequestError
from lmserve.text import deadline
from lmserve.text.abilities import abilities_of
from lmserve.text.chat import normalise_messages
from lmserve.text.parsing.forms import CallForm
from lmserve.text.template_checks import compile_checked
from lmserve.text.tool_messages import Abilities, as_objects, named_results, shown
from lmserve.types import Tool

MAX_RENDERED_CHARS = 32 * 2**20

_ALSO_SAID = ("tool_calls", "reasoning_content")  # parts of an answer's text

RESERVED_NAMES = frozenset(
    "messages add_generation_prompt continue_final_message bos_token eos_token tools documents "
    "raise_exception strftime_now namespace range dict lipsum cycler joiner tokenize "
    "chat_template conversation return_dict return_tensors self loop caller".split()
)


class ChatTemplate:
    """One model's template, compiled once. Rendering is a plain call, safe in any thread."""

    def __init__(
        self,
        source: str | None,
        *,
        bos_token: str | None = None,
        eos_token: str | None = None,
        max_chars: int = MAX_RENDERED_CHARS,
    ):
        self._tokens = {"bos_token": bos_token or "", "eos_token": eos_token or ""}
        self._max_chars = max_chars
        self._compiled: Template | None = None
        self._reads_parts = False  # the template itself walks over lists of content parts
        self._knows_developer = "developer" in (source or "")
        self._fault = "this model has no chat template"
        if source is not None:
            self._compile(source)

    def _compile(self, source: str) -> None:
        environment = _environment()
        try:
            self._compiled, tree = compile_checked(environment, source)
            self._reads_parts = _reads_parts(tree)
        except TemplateSyntaxError as error:
            self._fault = (
                f"this model's chat template is damaged (line {error.lineno}: {error.message})"
            )

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        kwargs: Mapping[str, Any] | None = None,
        tools: Sequence[Tool] = (),
        form: CallForm | None = None,
        add_generation_prompt: bool = True,
    ) -> str:
        """The prompt, with the beginning of the answer unless told else. `form`: how the model
        is to write calls, where its template does not say. Raises RequestError."""
        if self._compiled is None:
            raise RequestError(
                f"{self._fault}: use /v1/completions with a prompt, or serve the model with a "
                "chat template beside it",
                param="messages",
            )
        for name in kwargs or ():
            if name in RESERVED_NAMES or name.startswith("_"):
                raise InvalidField(
                    f"chat_template_kwargs.{name} is a name of the server's own: leave it out",
                    param=f"chat_template_kwargs.{name}",
                )
        normalised = normalise_messages(
            named_results(messages),
            join_parts=not self._reads_parts,
            developer=self._knows_developer,
        )
        objects = None
        if tools or any(m["role"] == "tool" or m.get("tool_calls") for m in normalised):
            normalised = shown(normalised, tools, self.abilities, form)
            objects = as_objects(tools) if tools and self.abilities.tools else None
        values = self._values(normalised, objects, kwargs, add_generation_prompt)
        return self._render(self._compiled, values)

    @cached_property
    def abilities(self) -> Abilities:
        compiled = self._compiled
        if compiled is None:
            return Abilities()
        return abilities_of(
            lambda messages, tools: self._render(compiled, self._values(messages, tools))
        )

    def _values(
        self,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None,
        kwargs: Mapping[str, Any] | None = None,
        add_generation_prompt: bool = True,
    ) -> dict[str, Any]:
        return {
            **(kwargs or {}),
            **self._tokens,
            "messages": messages,
            "tools": tools,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
        }

    def render_after(
        self,
        messages: Sequence[Mapping[str, Any]],
        num_known: int,
        *,
        kwargs: Mapping[str, Any] | None = None,
        tools: Sequence[Tool] = (),
        form: CallForm | None = None,
    ) -> str | None:
        """What `render` would put after the content of message `num_known` - 1, an answer: what
        closes it, the messages that follow and the beginning of the next answer. None where this
        template does not show an answer as it is, in one place. Raises RequestError."""
        mark = f"\ue000{secrets.token_hex(8)}\ue001"  # no message has it; it is not trimmed
        messages = named_results(messages)
        answer = messages[num_known - 1]
        marked = {**answer, "content": mark}
        for field in _ALSO_SAID:
            marked.pop(field, None)
        try:
            rendered = self.render(
                [*messages[: num_known - 1], marked, *messages[num_known:]],
                kwargs=kwargs,
                tools=tools,
                form=form,
            )
        except RequestError:
            if answer.get("tool_calls"):
                return None  # it may miss them: rendered whole, what is wrong is told
            raise
        _, *after = rendered.split(mark)
        return after[0] if len(after) == 1 else None

    def _render(self, template: Template, values: dict[str, Any]) -> str:
        parts: list[str] = []
        num_chars = 0
        try:
            for part in template.generate(values):
                deadline.check()
                num_chars += len(part)
                if num_chars > self._max_chars:
                    break
                parts.append(part)
        except LmserveError:
            raise
        except TemplateError as error:  # raise_exception's too: the message is the template's
            raise RequestError(
                f"the chat template refused the messages: {error.message}", param="messages"
            ) from error
        except Exception as error:  # a template is a program: it may fail in any way
            raise RequestError(
                "the chat template failed on these messages "
                f"({type(error).__name__}: {str(error)[:200]}): check their fields",
                param="messages",
            ) from error
        if num_chars > self._max_chars:
            raise RequestError(
                f"the rendered chat is longer than {self._max_chars} characters: send less",
                param="messages",
            )
        return "".join(parts)


class _Generation(Extension):
    """`{% generation %}…{% endgeneration %}` marks the answers for training: its body alone."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def syntax_fault(source: str) -> str | None:
    """Why this is no template, if it is none."""
    try:
        _environment().parse(source)
    except TemplateSyntaxError as error:
        return f"line {error.lineno}: {error.message}"
    return None


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Unlike Jinja's own, does not escape for HTML."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


def _reads_parts(tree: nodes.Template) -> bool:
    """Whether the template loops over some message's content."""
    return any(_is_content(loop.iter) for loop in tree.find_all(nodes.For))


def _is_content(node: nodes.Node) -> bool:
    if isinstance(node, nodes.Filter) and node.node is not None:
        return _is_content(node.node)
    if isinstance(node, nodes.Getattr):
        return node.attr == "content"
    if isinstance(node, nodes.Getitem):
        return isinstance(node.arg, nodes.Const) and node.arg.value == "content"
    return isinstance(node, nodes.Name) and node.name == "content"
