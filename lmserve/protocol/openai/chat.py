"""What `POST /v1/chat/completions` is asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from lmserve.errors import InvalidField
from lmserve.protocol.common import SamplingFields
from lmserve.protocol.openai.plain import (
    Extras,
    IncludeStop,
    Num,
    PromptLogprobs,
    ReturnProgress,
    ReturnTimings,
    ReturnTokenIds,
    StreamInterval,
    check_interval,
    include_usage,
)
from lmserve.protocol.tools import ChatTool, chat_tools
from lmserve.protocol.unserved import UNSERVED
from lmserve.types import GenerateRequest

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
Role = Literal["system", "developer", "user", "assistant", "tool"]


class ContentPart(Struct, kw_only=True):
    """One part of a message's content."""

    type: Annotated[str, Meta(description="`text`: the models served here read text only.")]
    text: str | None = None


class ChatMessage(Struct, kw_only=True):
    """One message of a conversation."""

    role: Annotated[
        Role, Meta(description="Who speaks; `developer` is `system` to models without that role.")
    ]
    content: Annotated[
        str | list[ContentPart] | None,
        Meta(description="The text, or its parts; null only from an assistant that called tools."),
    ] = None
    name: Annotated[str | None, Meta(description="Given to the chat template.")] = None
    reasoning_content: Annotated[
        str | None, Meta(description="What the assistant thought: given to the chat template.")
    ] = None
    tool_calls: Annotated[
        list[dict[str, Any]] | None, Meta(description="Given to the chat template.")
    ] = None
    tool_call_id: Annotated[str | None, Meta(description="Given to the chat template.")] = None
    refusal: Annotated[
        str | None, Meta(description="What an assistant said in place of `content`.")
    ] = None
    audio: Annotated[dict[str, Any] | None, Meta(description="Not served: null.")] = None
    function_call: Annotated[
        dict[str, Any] | None, Meta(description="Not served: null. `tool_calls` tells calls.")
    ] = None


class ChatFields(SamplingFields, kw_only=True):
    """What every answer to messages may be asked with."""

    max_completion_tokens: Annotated[
        int | None, Meta(description="Longest answer in tokens. Default: what fits the context.")
    ] = None
    max_tokens: Annotated[
        int | None, Meta(description="Older name of `max_completion_tokens`, which wins.")
    ] = None
    chat_template_kwargs: Annotated[
        dict[str, Any] | None, Meta(description="More variables for the chat template.")
    ] = None
    thinking_token_budget: Annotated[
        int | None, Meta(description="Longest reasoning in tokens: then its end is forced.")
    ] = None

    def sampling(self, owner: str) -> dict[str, Any]:
        common = super().sampling(owner) | {
            "max_tokens": self.max_tokens,
            "thinking_budget": self.thinking_token_budget,
        }
        if self.thinking_token_budget is not None:
            common["params"]["thinking_budget"] = "thinking_token_budget"
        if self.max_completion_tokens is not None:
            common["max_tokens"] = self.max_completion_tokens
            common["params"]["max_tokens"] = "max_completion_tokens"
        return common


class ChatCompletionRequest(ChatFields, kw_only=True):
    """A conversation to answer."""

    messages: Annotated[
        list[ChatMessage] | str,
        Meta(
            description="The conversation so far, oldest first. A plain string (LMDeploy) is "
            "sent to the model as it is, without the chat template. Empty with `input_ids`."
        ),
    ]
    input_ids: Annotated[
        list[int] | None,
        Meta(description="The prompt in token ids, in place of `messages`, which are empty then."),
    ] = None
    n: Num = None
    logprobs: Annotated[
        bool | None, Meta(description="Give the log probability of each token of the answer.")
    ] = None
    top_logprobs: Annotated[
        int | None, Meta(description="With `logprobs`: so many of the likeliest in each place.")
    ] = None
    prompt_logprobs: PromptLogprobs = None
    include_stop_str_in_output: IncludeStop = None
    return_token_ids: ReturnTokenIds = None
    return_progress: ReturnProgress = None
    return_timings: ReturnTimings = None
    stream_interval: StreamInterval = None
    tools: Annotated[
        list[ChatTool] | None, Meta(description="Functions that the model may call.")
    ] = None
    tool_choice: Annotated[
        str | dict[str, Any] | None,
        Meta(
            description="`auto` (default): it calls what it likes; `none`; `required`: it calls "
            "some; or `{type: function, function: {name}}`: it calls this one."
        ),
    ] = None
    parallel_tool_calls: Annotated[
        bool | None, Meta(description="More than one call in an answer. Default: true.")
    ] = None
    reasoning_effort: Annotated[
        Effort | None,
        Meta(
            description="Given to the chat template; `none` is `enable_thinking` false. Null: the "
            "template's own."
        ),
    ] = None
    enable_thinking: Annotated[
        bool | None,
        Meta(description="Older way to say `chat_template_kwargs.enable_thinking`, which wins."),
    ] = None
    continue_final_message: Annotated[
        bool | None,
        Meta(
            description="The last message is the beginning of the answer, which goes on from it. "
            "`add_generation_prompt` may be false then."
        ),
    ] = None
    metadata: Annotated[dict[str, Any] | None, Meta(description="Accepted, not used.")] = None
    service_tier: Annotated[str | None, Meta(description="Accepted, not used.")] = None
    prediction: Annotated[
        dict[str, Any] | None, Meta(description="Accepted, not used: it is only a hint.")
    ] = None
    prompt_cache_key: Annotated[
        str | None, Meta(description="Accepted, not used: equal beginnings are always found.")
    ] = None
    safety_identifier: Annotated[str | None, Meta(description="Accepted, not used.")] = None

    add_generation_prompt: Annotated[
        bool | None,
        Meta(description="False: only with `continue_final_message`."),
    ] = None
    functions: Annotated[
        list[Any] | None, Meta(description="Older form of `tools`: not served.")
    ] = None
    function_call: Annotated[
        str | dict[str, Any] | None,
        Meta(description="Older form of `tool_choice`.", extra={UNSERVED: ("none", "auto")}),
    ] = None
    modalities: Annotated[
        list[str] | None,
        Meta(description="Text only.", extra={UNSERVED: ([], ["text"])}),
    ] = None
    audio: Annotated[
        dict[str, Any] | None, Meta(description="Not served.", extra={UNSERVED: ()})
    ] = None
    store: Annotated[
        bool | None,
        Meta(description="Not served: `/v1/responses` keeps answers.", extra={UNSERVED: (False,)}),
    ] = None
    web_search_options: Annotated[
        dict[str, Any] | None, Meta(description="Not served.", extra={UNSERVED: ()})
    ] = None
    verbosity: Annotated[
        str | None, Meta(description="Not served.", extra={UNSERVED: ("medium",)})
    ] = None
    chat_template: Annotated[
        str | None, Meta(description="Not served.", extra={UNSERVED: ("",)})
    ] = None
    documents: Annotated[
        list[Any] | None, Meta(description="Not served.", extra={UNSERVED: ([],)})
    ] = None
    echo: Annotated[bool | None, Meta(description="Not served.", extra={UNSERVED: (False,)})] = None
    include_reasoning: Annotated[
        bool | None, Meta(description="Not served.", extra={UNSERVED: (True,)})
    ] = None

    @property
    def extras(self) -> Extras:
        include, so_far = include_usage(self.stream_options)
        return Extras(
            include_usage=include,
            usage_so_far=so_far,
            logprobs=bool(self.logprobs),
            prompt_logprobs=self.prompt_logprobs is not None,
            token_ids=bool(self.return_token_ids),
            timings=bool(self.return_timings),
            progress=bool(self.return_progress and self.stream),
            interval=self.stream_interval or 1,
        )

    def to_generate(self, owner: str = "") -> GenerateRequest:
        self._check()
        common = self.sampling(owner)
        if self.input_ids is not None:
            if self.messages:
                raise InvalidField(
                    "give messages or input_ids, not both: send messages []", param="input_ids"
                )
            common["params"]["prompt"] = "input_ids"
            return GenerateRequest(token_ids=self.input_ids, **common)
        if isinstance(self.messages, str):
            common["params"]["prompt"] = "messages"
            return GenerateRequest(text=self.messages, **common)
        tools, choice = chat_tools(self.tools, self.tool_choice, self.parallel_tool_calls)
        messages = [plain_message(message, i) for i, message in enumerate(self.messages)]
        return GenerateRequest(
            messages=messages,
            chat_template_kwargs=self._template_kwargs(),
            tools=tools,
            tool_choice=choice,
            splits=True,
            continues=continues(messages, self.continue_final_message),
            **common,
        )

    def sampling(self, owner: str) -> dict[str, Any]:
        common = super().sampling(owner)
        check_interval(self.stream_interval)
        if self.logprobs:
            common["params"]["logprobs"] = "top_logprobs"
        return common | {
            "n": 1 if self.n is None else self.n,
            "logprobs": (self.top_logprobs or 0) if self.logprobs else None,
            "prompt_logprobs": self.prompt_logprobs,
            "include_stop": bool(self.include_stop_str_in_output),
            "tell_progress": bool(self.return_progress and self.stream),
        }

    def _check(self) -> None:
        """What belongs together."""
        if self.top_logprobs and not self.logprobs:
            raise InvalidField(
                "top_logprobs goes only with logprobs: send logprobs true", param="top_logprobs"
            )
        if self.functions:
            raise InvalidField(
                "functions is an older form, which is not served: send tools", param="functions"
            )
        if self.add_generation_prompt is False and not self.continue_final_message:
            raise InvalidField(
                "add_generation_prompt false goes only with continue_final_message: leave it out",
                param="add_generation_prompt",
            )
        if (self.tools or self.continue_final_message) and not isinstance(self.messages, list):
            field = "tools" if self.tools else "continue_final_message"
            raise InvalidField(f"{field} goes only with a list of messages", param=field)

    def _template_kwargs(self) -> dict[str, Any]:
        """What was said for all templates first, and then what for this one."""
        kwargs: dict[str, Any] = {}
        if self.reasoning_effort is not None:
            kwargs["reasoning_effort"] = self.reasoning_effort
            if self.reasoning_effort == "none":
                kwargs["enable_thinking"] = False
        if self.enable_thinking is not None:
            kwargs["enable_thinking"] = self.enable_thinking
        return kwargs | (self.chat_template_kwargs or {})


def continues(messages: Sequence[Mapping[str, Any]], wanted: bool | None) -> bool:
    """Whether the last of them is the answer's beginning. Raises InvalidField."""
    if not wanted:
        return False
    last = messages[-1] if messages else {}
    if last.get("role") != "assistant" or not isinstance(last.get("content"), str):
        raise InvalidField(
            "continue_final_message needs a last message of the assistant, its content a text",
            param="continue_final_message",
        )
    return True


def plain_message(message: ChatMessage, index: int = 0) -> dict[str, Any]:
    """As it was sent, without what was null; `lmserve.text.chat` makes it fit the template.
    Raises InvalidField."""
    plain = _given(message)
    for name in ("audio", "function_call"):
        if name in plain:
            where = f"messages[{index}].{name}"
            raise InvalidField(f"{where} is not served: leave it out", param=where)
    refusal = plain.pop("refusal", None)
    if refusal is not None:
        plain.setdefault("content", refusal)
    if isinstance(message.content, list):
        plain["content"] = [_given(part) for part in message.content]
    return plain


def _given(struct: Struct) -> dict[str, Any]:
    return {k: value for k, value in msgspec.structs.asdict(struct).items() if value is not None}
