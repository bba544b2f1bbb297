"""What Anthropic's `POST /v1/messages` and `/v1/messages/count_tokens` are asked."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta, Struct, field

from lmserve.errors import InvalidField
from lmserve.protocol.anthropic.answers import StopReason
from lmserve.protocol.anthropic.input import CacheControl, InputBlock, InputMessage, chat_messages
from lmserve.protocol.common import Deadline, Priority
from lmserve.protocol.tools import ANTHROPIC_PARAMS, AnthropicTool, anthropic_tools
from lmserve.protocol.unserved import UNSERVED
from lmserve.types import Done, GenerateRequest, Structure

_PARAMS = {
    **ANTHROPIC_PARAMS,
    "stop": "stop_sequences",
    "thinking_budget": "thinking.budget_tokens",
}


class ThinkingConfig(Struct, kw_only=True):
    """Whether the model thinks before it answers."""

    type: Annotated[
        str,
        Meta(
            description="`enabled`, `adaptive` (as the model likes) or `disabled`, the default. Of "
            "models that always think it turns nothing off."
        ),
    ]
    budget_tokens: Annotated[
        int | None,
        Meta(description="With `enabled`: most tokens of reasoning; then its end is forced."),
    ] = None
    display: Annotated[
        str | None, Meta(description="`omitted`: what it thinks is not shown. Default: it is.")
    ] = None


class OutputFormat(Struct, kw_only=True):
    """The form of the answer: JSON that obeys a schema."""

    type: Annotated[str, Meta(description="`json_schema`.")]
    schema_: Annotated[dict[str, Any] | None, Meta(description="The JSON schema.")] = field(
        default=None, name="schema"
    )


class OutputConfig(Struct, kw_only=True):
    """How the answer is made."""

    effort: Annotated[
        str | None, Meta(description="Given to the chat template as `reasoning_effort`.")
    ] = None
    format: Annotated[
        OutputFormat | None, Meta(description="What the answer has to be. Default: any text.")
    ] = None


class MessagesPrompt(Struct, kw_only=True):
    """What the model is given."""

    model: Annotated[
        str | None,
        Meta(description="An `id` of `GET /v1/models`. Default: the model that is served."),
    ] = None
    messages: Annotated[
        list[InputMessage],
        Meta(
            description="The conversation, oldest first. Where the assistant's is the last, the "
            "answer goes on from it, and does not repeat it."
        ),
    ]
    system: Annotated[
        str | list[InputBlock] | None, Meta(description="What comes before the conversation.")
    ] = None
    tools: Annotated[
        list[AnthropicTool] | None, Meta(description="Functions that the model may call.")
    ] = None
    tool_choice: Annotated[
        dict[str, Any] | None,
        Meta(
            description="`{type: auto}` (default): it calls what it likes; `any`: it calls some; "
            "`tool`, with `name`: it calls this one; `none`. `disable_parallel_tool_use`: one call "
            "at most."
        ),
    ] = None
    thinking: ThinkingConfig | None = None
    output_config: OutputConfig | None = None
    output_format: Annotated[
        OutputFormat | None, Meta(description="Older name of `output_config.format`.")
    ] = None
    cache_control: CacheControl = None

    mcp_servers: Annotated[
        list[Any] | None, Meta(description="Not served.", extra={UNSERVED: ([],)})
    ] = None
    container: Annotated[
        str | dict[str, Any] | None, Meta(description="Not served.", extra={UNSERVED: ()})
    ] = None
    context_management: Annotated[
        dict[str, Any] | None, Meta(description="Not served.", extra={UNSERVED: ({},)})
    ] = None

    def to_generate(self, owner: str = "") -> GenerateRequest:
        return GenerateRequest(model=self.model, owner=owner, **self._prompt())

    def _prompt(self) -> dict[str, Any]:
        """The keyword arguments of `GenerateRequest` that these fields fill."""
        messages, continues = chat_messages(self.messages, self.system)
        tools, choice = anthropic_tools(self.tools, self.tool_choice)
        kwargs, budget = self._thinking()
        return {
            "messages": messages,
            "continues": continues,
            "tools": tools,
            "tool_choice": choice,
            "chat_template_kwargs": kwargs,
            "thinking_budget": budget,
            "structure": self._structure(),
            "splits": True,
            "params": _PARAMS,
        }

    def _thinking(self) -> tuple[dict[str, Any], int | None]:
        """For the template; and how many tokens."""
        config = self.thinking or ThinkingConfig(type="disabled")
        if config.type not in ("enabled", "adaptive", "disabled"):
            raise InvalidField(
                "thinking.type must be one of enabled, adaptive, disabled", param="thinking.type"
            )
        if config.display not in (None, "summarized", "omitted"):
            raise InvalidField(
                "thinking.display must be summarized or omitted", param="thinking.display"
            )
        if config.budget_tokens is not None and config.type != "enabled":
            raise InvalidField(
                "thinking.budget_tokens goes only with type enabled: leave it out",
                param="thinking.budget_tokens",
            )
        kwargs: dict[str, Any] = {}
        if config.type != "adaptive":
            kwargs["enable_thinking"] = config.type == "enabled"
        if self.output_config is not None and self.output_config.effort is not None:
            kwargs["reasoning_effort"] = self.output_config.effort
        return kwargs, config.budget_tokens

    def _structure(self) -> Structure | None:
        form, where = self.output_format, "output_format"
        if self.output_config is not None and self.output_config.format is not None:
            if form is not None:
                raise InvalidField(
                    f"{where} and output_config.format both say what the answer has to be: give "
                    "one",
                    param=where,
                )
            form, where = self.output_config.format, "output_config.format"
        if form is None:
            return None
        if form.type != "json_schema":
            raise InvalidField(f"{where}.type must be json_schema", param=f"{where}.type")
        if form.schema_ is None:
            raise InvalidField(f"{where}.schema is required", param=f"{where}.schema")
        return Structure("json_schema", form.schema_, f"{where}.schema")


class MessagesMetadata(Struct, kw_only=True):
    user_id: Annotated[str | None, Meta(description="Accepted, not used.")] = None


class MessagesRequest(MessagesPrompt, kw_only=True):
    """A conversation to answer, in Anthropic's words."""

    max_tokens: Annotated[int, Meta(description="Longest answer in tokens.")]
    stop_sequences: Annotated[
        list[str] | None,
        Meta(description="Texts at which the answer ends; left out of the answer."),
    ] = None
    temperature: Annotated[
        float | None,
        Meta(
            description="0 to 1 with Anthropic, to 2 here. 0 always takes the likeliest token. "
            "Default: the model's."
        ),
    ] = None
    top_p: Annotated[
        float | None,
        Meta(description="Above 0, to 1: sample from the likeliest tokens of this total weight."),
    ] = None
    top_k: Annotated[
        int | None, Meta(description="Sample from this many likeliest tokens; 0 or -1: all.")
    ] = None
    stream: Annotated[
        bool | None, Meta(description="Send the answer as server-sent events, as it is made.")
    ] = None
    metadata: MessagesMetadata | None = None
    service_tier: Annotated[str | None, Meta(description="Accepted, not used.")] = None
    priority: Priority = None
    deadline_s: Deadline = None

    @property
    def shows_thinking(self) -> bool:
        return self.thinking is None or self.thinking.display != "omitted"

    def to_generate(self, owner: str = "") -> GenerateRequest:
        return GenerateRequest(
            model=self.model,
            owner=owner,
            max_tokens=self.max_tokens,
            stop=tuple(self.stop_sequences or ()),
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            priority=self.priority or 0,
            deadline_s=self.deadline_s,
            **self._prompt(),
        )

    def stop_of(self, done: Done) -> tuple[StopReason, str | None]:
        """Why the answer ended, and at which of the texts. The chat template's own end is the
        model's."""
        if done.finish_reason == "length":
            return "max_tokens", None
        if done.finish_reason == "abort":
            return "pause_turn", None
        if isinstance(done.stop_reason, str) and done.stop_reason in (self.stop_sequences or ()):
            return "stop_sequence", done.stop_reason
        return ("tool_use" if done.finish_reason == "tool_calls" else "end_turn"), None


class CountTokensRequest(MessagesPrompt, kw_only=True):
    """A conversation to count."""


class CountTokensResponse(Struct, kw_only=True):
    input_tokens: Annotated[int, Meta(description="Of the prompt as it would be run.")]
