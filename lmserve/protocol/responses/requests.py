"""What an answer that is kept is asked with: `/v1/responses`, and the turns of sessions."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta, field, to_builtins

from lmserve.errors import InvalidField
from lmserve.protocol.openai.chat import ChatFields
from lmserve.protocol.responses.input import ResponseInputItem, input_messages
from lmserve.protocol.responses.settings import (
    LOGPROBS,
    ResponseConversation,
    ResponseReasoning,
    ResponseText,
)
from lmserve.protocol.tools import RESPONSES_PARAMS, ResponseTool, response_tools
from lmserve.protocol.unserved import UNSERVED
from lmserve.types import GenerateRequest

_FORMS = (
    "give one of: input (with after, if it is not to follow the head); input and edit, the message "
    "it takes the place of; regenerate alone, the answer to make again; continue alone, the answer "
    "to go on with"
)


class ResponseFields(ChatFields, kw_only=True):
    """What every answer that is kept may be asked with."""

    input: Annotated[
        str | list[ResponseInputItem] | None,
        Meta(description="What the user says; or items, oldest first."),
    ] = None
    after: Annotated[
        str | None,
        Meta(
            description="The message that the input follows, or `root` for a new beginning. "
            "Default: the session's head."
        ),
    ] = None
    edit: Annotated[
        str | None,
        Meta(description="The message that the input takes the place of: it becomes its sibling."),
    ] = None
    regenerate: Annotated[
        str | None,
        Meta(
            description="The answer to make again, as a sibling of it: its message or its "
            "response. Without `input`."
        ),
    ] = None
    continue_: Annotated[
        str | None,
        Meta(
            description="The answer to go on with where it stopped: its message or its response. "
            "Without `input`."
        ),
    ] = field(default=None, name="continue")
    instructions: Annotated[
        str | None,
        Meta(description="A system message for this answer alone: later ones do not see it."),
    ] = None
    max_output_tokens: Annotated[
        int | None, Meta(description="Longest answer in tokens. Default: what fits the context.")
    ] = None
    background: Annotated[
        bool | None,
        Meta(description="Answer at once, with nothing said yet; it goes on without readers."),
    ] = None
    generate: Annotated[
        bool | None,
        Meta(description="false: the input is kept and run, and nothing is said. Default: true."),
    ] = None
    metadata: Annotated[
        dict[str, str] | None, Meta(description="Told back: 16 keys of 64, values of 512 letters.")
    ] = None
    text: Annotated[
        ResponseText | None, Meta(description="Its `format` is what the answer has to be.")
    ] = None
    include: Annotated[
        list[str] | None,
        Meta(
            description="`message.output_text.logprobs`: the log probability of each token of the "
            "text. Others are accepted, not used."
        ),
    ] = None
    top_logprobs: Annotated[
        int | None, Meta(description="And of so many of the likeliest in each place.")
    ] = None
    tools: Annotated[
        list[ResponseTool] | None, Meta(description="Functions that the model may call.")
    ] = None
    tool_choice: Annotated[
        str | dict[str, Any] | None,
        Meta(
            description="`auto` (default): it calls what it likes; `none`; `required`: it calls "
            "some; or `{type: function, name}`: it calls this one."
        ),
    ] = None
    parallel_tool_calls: Annotated[
        bool | None, Meta(description="More than one call in an answer. Default: true.")
    ] = None
    reasoning: Annotated[ResponseReasoning | None, Meta(description="How the model thinks.")] = None
    user: Annotated[str | None, Meta(description="Told back, not used.")] = None
    safety_identifier: Annotated[str | None, Meta(description="Told back, not used.")] = None
    prompt_cache_key: Annotated[
        str | None, Meta(description="Told back, not used: what ran before is always found.")
    ] = None
    service_tier: Annotated[str | None, Meta(description="Accepted, not used.")] = None
    max_tool_calls: Annotated[int | None, Meta(description="Told back, not used.")] = None

    session_id: Annotated[
        int | None,
        Meta(description="Not here: a session has a name.", extra={UNSERVED: (-1,)}),
    ] = None
    truncation: Annotated[
        str | None,
        Meta(description="`disabled`; others are not served.", extra={UNSERVED: ("disabled",)}),
    ] = None
    prompt: Annotated[
        dict[str, Any] | None, Meta(description="Not served.", extra={UNSERVED: ({},)})
    ] = None
    moderation: Annotated[
        dict[str, Any] | None, Meta(description="Not served.", extra={UNSERVED: ({},)})
    ] = None
    context_management: Annotated[
        list[Any] | None, Meta(description="Not served yet.", extra={UNSERVED: ([],)})
    ] = None

    @property
    def is_kept(self) -> bool:
        return True

    def check(self, *, may_be_silent: bool = False) -> None:
        """Exactly one of the forms. `may_be_silent`: without input, what came before is
        answered."""
        others = [
            name
            for name, value in (("regenerate", self.regenerate), ("continue", self.continue_))
            if value is not None
        ]
        if others:
            wrong = self.input is not None or self.after is not None or self.edit is not None
            if wrong or len(others) > 1:
                raise InvalidField(_FORMS, param=others[-1])
        elif self.after is not None and self.edit is not None:
            raise InvalidField(_FORMS, param="edit")
        elif self.input is None and not may_be_silent:
            raise InvalidField(_FORMS, param="input")
        elif not self.input and not may_be_silent:
            raise InvalidField("input is empty: say something", param="input")

    def to_generate(self, owner: str) -> GenerateRequest:
        """With the new messages alone."""
        common = self.sampling(owner)
        tools, choice = response_tools(self.tools, self.tool_choice, self.parallel_tool_calls)
        effort = {} if self.reasoning is None else self.reasoning.template_kwargs()
        return GenerateRequest(
            messages=input_messages(self.input),
            tools=tools,
            tool_choice=choice,
            splits=True,
            chat_template_kwargs=effort | (self.chat_template_kwargs or {}),
            **common,
        )

    def sampling(self, owner: str) -> dict[str, Any]:
        common = super().sampling(owner)
        common["params"] |= {"messages": "input", "prompt": "input"} | RESPONSES_PARAMS
        if self.max_output_tokens is not None:
            common["max_tokens"] = self.max_output_tokens
            common["params"]["max_tokens"] = "max_output_tokens"
        if self.reasoning is not None and self.reasoning.max_tokens is not None:
            common["thinking_budget"] = self.reasoning.max_tokens
            common["params"]["thinking_budget"] = "reasoning.max_tokens"
        if self.top_logprobs or LOGPROBS in (self.include or ()):
            common["logprobs"] = self.top_logprobs or 0
            common["params"]["logprobs"] = "top_logprobs"
        form = None if self.text is None or self.text.format is None else self.text.format
        structure = None if form is None else form.structure()
        if structure is not None:
            if common.get("structure") is not None:
                raise InvalidField(
                    f"text.format and {common['structure'].param} both say what the answer has to "
                    "be: give one",
                    param="text.format",
                )
            common["structure"] = structure
        return common

    def told(self) -> dict[str, Any]:
        """Of the settings, as the response tells them."""
        return {
            "background": bool(self.background),
            "instructions": self.instructions,
            "max_output_tokens": self.sampling("")["max_tokens"],
            "max_tool_calls": self.max_tool_calls,
            "metadata": self.metadata or {},
            "parallel_tool_calls": self.parallel_tool_calls is not False,
            "prompt_cache_key": self.prompt_cache_key,
            "reasoning": None if self.reasoning is None else to_builtins(self.reasoning),
            "safety_identifier": self.safety_identifier,
            "store": self.is_kept,
            "temperature": self.temperature,
            "text": self._text_told(),
            "tool_choice": self.tool_choice or "auto",
            "tools": [to_builtins(tool) for tool in self.tools or ()],
            "top_logprobs": self.top_logprobs or 0,
            "top_p": self.top_p,
            "user": self.user,
        }

    def _text_told(self) -> dict[str, Any]:
        told = {} if self.text is None else to_builtins(self.text)
        return {"format": {"type": "text"}} | told


class ResponseCreate(ResponseFields, kw_only=True):
    """An answer to make and keep. It follows a response, or goes on with a session, or begins
    one."""

    previous_response_id: Annotated[
        str | None,
        Meta(description="The response that the input follows; two may follow the same."),
    ] = None
    conversation: Annotated[
        str | ResponseConversation | None,
        Meta(description="The session whose turn it is. Default: a new one begins."),
    ] = None
    store: Annotated[
        bool | None,
        Meta(description="false: in memory only, for who refers to it soon. Default: true."),
    ] = None

    @property
    def is_kept(self) -> bool:
        return self.store is not False

    @property
    def session(self) -> str | None:
        if isinstance(self.conversation, ResponseConversation):
            return self.conversation.id
        return self.conversation

    def check(self, *, may_be_silent: bool = False) -> None:
        if self.conversation is not None and self.previous_response_id is not None:
            raise InvalidField(
                "conversation and previous_response_id say two things: leave out one of them",
                param="previous_response_id",
            )
        if self.background and not self.is_kept:
            raise InvalidField(
                "background needs store: leave out store, or background", param="background"
            )
        if self.conversation is None:
            self._check_alone()
        silent = self.generate is False or self.previous_response_id is not None
        super().check(may_be_silent=may_be_silent or silent)

    def _check_alone(self) -> None:
        """Places in a tree need a tree."""
        for name, value in (("after", self.after), ("edit", self.edit)):
            if value is not None:
                raise InvalidField(
                    f"{name} names a message of a session: give conversation, its id, too",
                    param=name,
                )
        for name, value in (("regenerate", self.regenerate), ("continue", self.continue_)):
            if value is None:
                continue
            if self.previous_response_id is not None:
                raise InvalidField(
                    f"{name} says itself what it follows: leave out previous_response_id",
                    param="previous_response_id",
                )
            if not value.startswith("resp_"):
                raise InvalidField(
                    f"{name} is {value[:50]!r}: give the id of a response; or conversation, too, "
                    "and the id of one of its messages",
                    param=name,
                )
