"""What Ollama's `/api/chat` and `/api/generate` are asked."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from lmserve.errors import InvalidField
from lmserve.protocol.decode import refuse_unserved
from lmserve.protocol.tools import ChatTool, chat_tools
from lmserve.protocol.unserved import UNSERVED
from lmserve.types import GenerateRequest, Structure

_UNREAD = Meta(description="Accepted, not used: it is for how Ollama itself runs a model.")
_UNSERVED = Meta(description="Not served.", extra={UNSERVED: ("", [])})
_LEVELS = ("low", "medium", "high", "max")

#: Ours to what clients call them here.
_PARAMS = {
    "max_tokens": "options.num_predict",
    "repetition_penalty": "options.repeat_penalty",
    **{
        name: f"options.{name}"
        for name in ("temperature", "top_p", "top_k", "min_p", "seed", "stop")
    },
    **{name: f"options.{name}" for name in ("presence_penalty", "frequency_penalty")},
    "logprobs": "top_logprobs",
}


class OllamaOptions(Struct, kw_only=True):
    """How to sample. What is left out is the model's own default, not Ollama's."""

    num_predict: Annotated[
        int | None,
        Meta(description="Longest answer in tokens; below 0, as by default: what fits."),
    ] = None
    temperature: Annotated[float | None, Meta(description="0 to 2; 0: the likeliest token.")] = None
    top_p: Annotated[float | None, Meta(description="Above 0, to 1.")] = None
    top_k: Annotated[int | None, Meta(description="0 or -1: all tokens.")] = None
    min_p: Annotated[float | None, Meta(description="0 to 1.")] = None
    seed: Annotated[int | None, Meta(description="-1: drawn at random, as by default.")] = None
    stop: Annotated[str | list[str] | None, Meta(description="Texts at which the answer ends.")] = (
        None
    )
    repeat_penalty: Annotated[
        float | None, Meta(description="0.01 to 2; 1: off. It looks at all tokens so far.")
    ] = None
    presence_penalty: Annotated[float | None, Meta(description="-2 to 2.")] = None
    frequency_penalty: Annotated[float | None, Meta(description="-2 to 2.")] = None

    mirostat: Annotated[int | None, Meta(description="Not served.", extra={UNSERVED: (0,)})] = None
    typical_p: Annotated[
        float | None, Meta(description="Not served.", extra={UNSERVED: (1.0,)})
    ] = None
    tfs_z: Annotated[float | None, Meta(description="Not served.", extra={UNSERVED: (1.0,)})] = None
    repeat_last_n: Annotated[int | None, _UNREAD] = None
    mirostat_tau: Annotated[float | None, _UNREAD] = None
    mirostat_eta: Annotated[float | None, _UNREAD] = None
    penalize_newline: Annotated[bool | None, _UNREAD] = None
    num_ctx: Annotated[int | None, _UNREAD] = None
    num_keep: Annotated[int | None, _UNREAD] = None
    num_batch: Annotated[int | None, _UNREAD] = None
    num_gpu: Annotated[int | None, _UNREAD] = None
    main_gpu: Annotated[int | None, _UNREAD] = None
    num_thread: Annotated[int | None, _UNREAD] = None
    numa: Annotated[bool | None, _UNREAD] = None
    low_vram: Annotated[bool | None, _UNREAD] = None
    f16_kv: Annotated[bool | None, _UNREAD] = None
    logits_all: Annotated[bool | None, _UNREAD] = None
    vocab_only: Annotated[bool | None, _UNREAD] = None
    embedding_only: Annotated[bool | None, _UNREAD] = None
    use_mmap: Annotated[bool | None, _UNREAD] = None
    use_mlock: Annotated[bool | None, _UNREAD] = None

    def sampling(self) -> dict[str, Any]:
        """The keyword arguments of `GenerateRequest` that these fill."""
        refuse_unserved(self, "options.")
        limit, stop = self.num_predict, self.stop
        return {
            "max_tokens": None if limit is None or limit < 0 else limit,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "min_p": self.min_p,
            "seed": None if self.seed == -1 else self.seed,
            "stop": (stop,) if isinstance(stop, str) else tuple(stop or ()),
            "repetition_penalty": self.repeat_penalty,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
        }


class _Fields(Struct, kw_only=True):
    """What both routes take."""

    model: Annotated[
        str | None,
        Meta(
            description="A `name` of `GET /api/tags`; `:latest` may follow. Default: the model "
            "that is served."
        ),
    ] = None
    stream: Annotated[
        bool | None,
        Meta(description="One JSON object a line, as the answer is made. Default: true."),
    ] = None
    options: OllamaOptions | None = None
    keep_alive: Annotated[
        str | float | None, Meta(description="Accepted, not used: the model stays.")
    ] = None
    think: Annotated[
        bool | str | None,
        Meta(
            description="Whether the model thinks before it answers, or how much: `low`, `medium`, "
            "`high`; given to the chat template as `enable_thinking` and `reasoning_effort`. "
            "Default: as the model likes."
        ),
    ] = None
    format: Annotated[
        str | dict[str, Any] | None,
        Meta(description="What the answer has to be: `json`, or JSON that obeys this schema."),
    ] = None
    logprobs: Annotated[
        bool | None, Meta(description="Give the log probability of each token of the answer.")
    ] = None
    top_logprobs: Annotated[
        int | None, Meta(description="With `logprobs`: so many of the likeliest in each place.")
    ] = None

    @property
    def streams(self) -> bool:
        return self.stream is not False

    def common(self, owner: str, model: str | None, prompt: str) -> dict[str, Any]:
        options = self.options or OllamaOptions()
        if self.top_logprobs and not self.logprobs:
            raise InvalidField(
                "top_logprobs goes only with logprobs: send logprobs true", param="top_logprobs"
            )
        return options.sampling() | {
            "model": model,
            "owner": owner,
            "structure": self._structure(),
            "logprobs": (self.top_logprobs or 0) if self.logprobs else None,
            "params": {**_PARAMS, "prompt": prompt, "messages": prompt},
        }

    def _structure(self) -> Structure | None:
        if not self.format:
            return None
        if isinstance(self.format, dict):
            return Structure("json_schema", self.format, "format")
        if self.format != "json":
            raise InvalidField(
                f"format is {self.format[:50]!r}: it must be json, or a JSON schema", param="format"
            )
        return Structure("json_object", None, "format")

    @property
    def template_kwargs(self) -> dict[str, Any]:
        if self.think is None:
            return {}
        if isinstance(self.think, bool):
            return {"enable_thinking": self.think}
        if self.think not in _LEVELS:
            raise InvalidField(f"think must be true, false, {', '.join(_LEVELS)}", param="think")
        return {"enable_thinking": True, "reasoning_effort": self.think}


class OllamaMessage(Struct, kw_only=True):
    """One message of a conversation."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = None
    images: Annotated[list[Any] | None, _UNSERVED] = None
    tool_calls: Annotated[
        list[dict[str, Any]] | None, Meta(description="Given to the chat template.")
    ] = None
    tool_name: Annotated[str | None, Meta(description="Given to the chat template, as `name`.")] = (
        None
    )
    tool_call_id: Annotated[str | None, Meta(description="Given to the chat template.")] = None
    thinking: Annotated[
        str | None, Meta(description="What the assistant thought: given to the chat template.")
    ] = None

    def plain(self, where: str) -> dict[str, Any]:
        refuse_unserved(self, f"{where}.")
        given = {
            "tool_calls": self.tool_calls,
            "name": self.tool_name,
            "tool_call_id": self.tool_call_id,
            "reasoning_content": self.thinking,
        }
        message = {"role": self.role, "content": self.content or ""}
        return message | {name: value for name, value in given.items() if value}


class OllamaChatRequest(_Fields, kw_only=True):
    """A conversation to answer."""

    messages: Annotated[
        list[OllamaMessage] | None,
        Meta(description="Oldest first. None: nothing is answered, with `load`."),
    ] = None
    tools: Annotated[
        list[ChatTool] | None, Meta(description="Functions that the model may call.")
    ] = None

    @property
    def asks(self) -> bool:
        """For an answer; else whether the model is there."""
        return bool(self.messages)

    def to_generate(self, owner: str, model: str | None) -> GenerateRequest:
        tools, choice = chat_tools(self.tools, None, None)
        return GenerateRequest(
            messages=[m.plain(f"messages[{i}]") for i, m in enumerate(self.messages or ())],
            chat_template_kwargs=self.template_kwargs,
            tools=tools,
            tool_choice=choice,
            splits=True,
            **self.common(owner, model, "messages"),
        )


class OllamaGenerateRequest(_Fields, kw_only=True):
    """A prompt to answer."""

    prompt: Annotated[
        str | None,
        Meta(
            description="Put through the chat template, as one turn of the user, unless `raw`. "
            "None: nothing is answered, with `load`."
        ),
    ] = None
    system: Annotated[str | None, Meta(description="The system message before it.")] = None
    raw: Annotated[
        bool | None, Meta(description="Go on from the prompt as it is, without the chat template.")
    ] = None
    suffix: Annotated[str | None, _UNSERVED] = None
    images: Annotated[list[Any] | None, _UNSERVED] = None
    template: Annotated[str | None, _UNSERVED] = None
    context: Annotated[
        list[int] | None,
        Meta(
            description="Not served: send the conversation to `/api/chat`.", extra={UNSERVED: ([],)}
        ),
    ] = None

    @property
    def asks(self) -> bool:
        """For an answer; else whether the model is there."""
        return bool(self.prompt)

    def to_generate(self, owner: str, model: str | None) -> GenerateRequest:
        common = self.common(owner, model, "prompt")
        if self.raw:
            if self.system:
                raise InvalidField(
                    "system cannot be used with raw: put it into prompt", param="system"
                )
            if self.think:
                raise InvalidField("think cannot be used with raw: leave it out", param="think")
            return GenerateRequest(text=self.prompt, **common)
        messages = [{"role": "user", "content": self.prompt or ""}]
        if self.system:
            messages.insert(0, {"role": "system", "content": self.system})
        return GenerateRequest(
            messages=messages,
            chat_template_kwargs=self.template_kwargs,
            splits=True,
            **common,
        )
