"""`POST /tokenize`, `/detokenize` and the render route: vLLM's ways to see what a model will."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from lmserve.errors import InvalidField
from lmserve.protocol.openai.chat import ChatMessage, continues, plain_message
from lmserve.protocol.tools import ChatTool, chat_tools
from lmserve.protocol.unserved import UNSERVED
from lmserve.types import GenerateRequest


class TokenizeRequest(Struct, kw_only=True):
    """A text or a conversation to tokenise: give one of the two."""

    model: Annotated[
        str | None,
        Meta(description="An `id` of `GET /v1/models`. Default: the model that is served."),
    ] = None
    prompt: Annotated[str | None, Meta(description="Text, taken without the chat template.")] = None
    messages: Annotated[
        list[ChatMessage] | None,
        Meta(description="A conversation, put through the chat template."),
    ] = None
    add_special_tokens: Annotated[
        bool | None,
        Meta(
            description="Add what the tokenizer puts around a text, such as BOS. Default: true for "
            "a prompt, false for messages, whose template has it already."
        ),
    ] = None
    add_generation_prompt: Annotated[
        bool | None,
        Meta(description="End messages with the beginning of an answer. Default: true."),
    ] = None
    chat_template_kwargs: Annotated[
        dict[str, Any] | None, Meta(description="More variables for the chat template.")
    ] = None
    return_token_strs: Annotated[
        bool | None, Meta(description="Spell each token as the vocabulary does. Default: false.")
    ] = None

    tools: Annotated[
        list[ChatTool] | None, Meta(description="With messages: functions that the model may call.")
    ] = None
    continue_final_message: Annotated[
        bool | None,
        Meta(
            description="The last message is the beginning of the answer. `add_generation_prompt` "
            "may be false then."
        ),
    ] = None
    chat_template: Annotated[
        str | None, Meta(description="Not served.", extra={UNSERVED: ("",)})
    ] = None
    mm_processor_kwargs: Annotated[
        dict[str, Any] | None, Meta(description="Not served.", extra={UNSERVED: ({},)})
    ] = None

    @property
    def adds_special(self) -> bool:
        given = self.add_special_tokens
        return self.prompt is not None if given is None else given

    @property
    def begins_answer(self) -> bool:
        return self.add_generation_prompt is not False or bool(self.continue_final_message)

    def to_generate(self) -> GenerateRequest:
        if (self.prompt is None) == (self.messages is None):
            raise InvalidField("give exactly one of prompt and messages", param="prompt")
        if self.messages is None:
            if self.tools or self.continue_final_message:
                field = "tools" if self.tools else "continue_final_message"
                raise InvalidField(f"{field} goes only with messages: leave it out", param=field)
            return GenerateRequest(model=self.model, text=self.prompt)
        messages = [plain_message(message, i) for i, message in enumerate(self.messages)]
        tools, choice = chat_tools(self.tools, None, None)
        return GenerateRequest(
            model=self.model,
            messages=messages,
            chat_template_kwargs=self.chat_template_kwargs or {},
            tools=tools,
            tool_choice=choice,
            continues=continues(messages, self.continue_final_message),
        )


class TokenizeResponse(Struct, kw_only=True):
    """The tokens, and how many of them the model takes."""

    count: int
    max_model_len: Annotated[int, Meta(description="Prompt and answer together, in tokens.")]
    tokens: list[int]
    token_strs: Annotated[list[str] | None, Meta(description="Only with `return_token_strs`.")] = (
        None
    )


class DetokenizeRequest(Struct, kw_only=True):
    """Tokens to read."""

    model: Annotated[
        str | None,
        Meta(description="An `id` of `GET /v1/models`. Default: the model that is served."),
    ] = None
    tokens: Annotated[list[int], Meta(description="Token ids, at most a context of them.")]

    def to_generate(self) -> GenerateRequest:
        params = {"prompt": "tokens"}
        return GenerateRequest(model=self.model, token_ids=self.tokens, params=params)


class DetokenizeResponse(Struct, kw_only=True):
    """Their text, special tokens written out."""

    prompt: str


class TokenizerInfo(Struct, kw_only=True):
    """What a client needs to know of the tokenizer to use it through this server."""

    tokenizer_class: Literal["PreTrainedTokenizerFast"] = "PreTrainedTokenizerFast"
    model_max_length: Annotated[int, Meta(description="Prompt and answer together, in tokens.")]
    bos_token: str | None
    eos_token: str | None
    pad_token: str | None = None
    chat_template: Annotated[str | None, Meta(description="Jinja, as it is used here.")]


class RenderResponse(Struct, kw_only=True):
    """What would be run."""

    model: str
    prompt: Annotated[str, Meta(description="After the chat template, special tokens in it.")]
    token_ids: list[int]
    count: int
    max_model_len: Annotated[int, Meta(description="Prompt and answer together, in tokens.")]
