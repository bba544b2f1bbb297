"""What chat and plain completions share: sampling fields, usage, stream options.

A request field is always optional in the wire's sense: `null` means absent. Fields that
clients know but lmserve does not serve yet are declared with `extra={"unserved": neutral}`:
their neutral values pass, any other is refused by `lmserve.protocol.decode`, never ignored.
"""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta, Struct

from lmserve.errors import InvalidField
from lmserve.types import Usage

UNSERVED = "unserved"


class StreamOptions(Struct, kw_only=True):
    """Options of a streamed answer."""

    include_usage: Annotated[
        bool | None, Meta(description="Send one more chunk before `[DONE]`, holding the usage.")
    ] = None
    include_obfuscation: Annotated[
        bool | None, Meta(description="Accepted, not used: nothing is added to events.")
    ] = None


class ResponseFormat(Struct, kw_only=True):
    """The form of the answer."""

    type: Annotated[str, Meta(description="`text`; other forms are not served yet.")]


# How a request waits.
Priority = Annotated[
    int | None, Meta(description="0 (default) to 100: it waits for requests with lower numbers.")
]
Deadline = Annotated[
    float | None,
    Meta(
        description="Seconds from its arrival, up to 86400: refused with 504 where the answer "
        "cannot begin by then, ended where it takes longer."
    ),
]


class SamplingFields(Struct, kw_only=True):
    """Fields of every generating request."""

    model: Annotated[
        str | None,
        Meta(description="An `id` of `GET /v1/models`. Default: the model that is served."),
    ] = None
    temperature: Annotated[
        float | None,
        Meta(description="0 to 2. 0 always takes the likeliest token. Default: the model's."),
    ] = None
    top_p: Annotated[
        float | None,
        Meta(description="Above 0, to 1: sample from the likeliest tokens of this total weight."),
    ] = None
    top_k: Annotated[
        int | None, Meta(description="Sample from this many likeliest tokens; 0 or -1: all.")
    ] = None
    min_p: Annotated[
        float | None,
        Meta(description="0 to 1: drop tokens less likely than this share of the likeliest one."),
    ] = None
    repetition_penalty: Annotated[
        float | None,
        Meta(description="Above 0, to 2; over 1 makes tokens used before less likely. 1: off."),
    ] = None
    presence_penalty: Annotated[
        float | None,
        Meta(description="-2 to 2: taken from the logit of each token already in the answer."),
    ] = None
    frequency_penalty: Annotated[
        float | None,
        Meta(description="-2 to 2: as `presence_penalty`, times how often the token occurred."),
    ] = None
    seed: Annotated[
        int | None, Meta(description="Makes sampling repeatable. Default: drawn at random.")
    ] = None
    min_tokens: Annotated[
        int | None, Meta(description="No end or stop before this many tokens of the answer.")
    ] = None
    min_new_tokens: Annotated[
        int | None, Meta(description="LMDeploy's name of `min_tokens`, which wins.")
    ] = None
    stop: Annotated[
        str | list[str] | None,
        Meta(description="Text, or texts, at which the answer ends; left out of the answer."),
    ] = None
    stop_token_ids: Annotated[
        list[int] | None, Meta(description="Token ids at which the answer ends.")
    ] = None
    ignore_eos: Annotated[
        bool | None, Meta(description="Go on past the model's end token, to `max_tokens`.")
    ] = None
    skip_special_tokens: Annotated[
        bool | None, Meta(description="Leave special tokens out of the text. Default: true.")
    ] = None
    spaces_between_special_tokens: Annotated[
        bool | None,
        Meta(description="Accepted; the tokenizers here put no spaces there, as fast ones do."),
    ] = None
    stream: Annotated[
        bool | None, Meta(description="Send the answer as server-sent events, as it is made.")
    ] = None
    stream_options: Annotated[StreamOptions | None, Meta(description="Only with `stream`.")] = None
    user: Annotated[str | None, Meta(description="Accepted, not used.")] = None
    priority: Priority = None
    deadline_s: Deadline = None
    session_id: Annotated[
        int | None,
        Meta(
            description="A number of yours by which `POST /abort_request` ends the answer; -1: "
            "none. Each call stands alone: `/v1/chat/interactive` keeps conversations."
        ),
    ] = None

    response_format: Annotated[
        ResponseFormat | None,
        Meta(
            description="`text` only; others are not served yet.",
            extra={UNSERVED: (ResponseFormat(type="text"),)},
        ),
    ] = None
    n: Annotated[
        int | None,
        Meta(description="Answers wanted. More than 1: not served yet.", extra={UNSERVED: (1,)}),
    ] = None
    logit_bias: Annotated[
        dict[str, float] | None,
        Meta(description="Not served yet.", extra={UNSERVED: ({},)}),
    ] = None
    include_stop_str_in_output: Annotated[
        bool | None, Meta(description="Not served yet.", extra={UNSERVED: (False,)})
    ] = None
    allowed_token_ids: Annotated[
        list[int] | None, Meta(description="Not served yet.", extra={UNSERVED: ([],)})
    ] = None
    bad_words: Annotated[
        list[str] | None, Meta(description="Not served yet.", extra={UNSERVED: ([],)})
    ] = None
    prompt_logprobs: Annotated[
        int | None, Meta(description="Not served yet.", extra={UNSERVED: ()})
    ] = None
    structured_outputs: Annotated[
        dict[str, Any] | None, Meta(description="Not served yet.", extra={UNSERVED: ({},)})
    ] = None
    guided_json: Annotated[
        str | dict[str, Any] | None, Meta(description="Not served yet.", extra={UNSERVED: ({},)})
    ] = None
    guided_regex: Annotated[
        str | None, Meta(description="Not served yet.", extra={UNSERVED: ("",)})
    ] = None
    guided_choice: Annotated[
        list[str] | None, Meta(description="Not served yet.", extra={UNSERVED: ([],)})
    ] = None
    guided_grammar: Annotated[
        str | None, Meta(description="Not served yet.", extra={UNSERVED: ("",)})
    ] = None
    # LMDeploy's
    adapter_name: Annotated[
        str | None, Meta(description="Not served yet.", extra={UNSERVED: ("",)})
    ] = None
    image_data: Annotated[
        str | dict[str, Any] | list[Any] | None,
        Meta(description="Not served.", extra={UNSERVED: ("", [])}),
    ] = None
    media_io_kwargs: Annotated[
        dict[str, Any] | None, Meta(description="Not served.", extra={UNSERVED: ({},)})
    ] = None
    mm_processor_kwargs: Annotated[
        dict[str, Any] | None, Meta(description="Not served.", extra={UNSERVED: ({},)})
    ] = None
    migration_request: Annotated[
        dict[str, Any] | None, Meta(description="Not served.", extra={UNSERVED: ()})
    ] = None
    with_cache: Annotated[
        bool | None, Meta(description="Not served.", extra={UNSERVED: (False,)})
    ] = None
    preserve_cache: Annotated[
        bool | None, Meta(description="Not served.", extra={UNSERVED: (False,)})
    ] = None
    return_logprob: Annotated[
        bool | None, Meta(description="Not served yet.", extra={UNSERVED: (False,)})
    ] = None
    return_token_ids: Annotated[
        bool | None,
        Meta(description="Not served here: `/generate` gives them.", extra={UNSERVED: (False,)}),
    ] = None
    return_routed_experts: Annotated[
        bool | None, Meta(description="Not served.", extra={UNSERVED: (False,)})
    ] = None
    repetition_ngram_size: Annotated[
        int | None, Meta(description="Not served yet.", extra={UNSERVED: (0,)})
    ] = None
    repetition_ngram_threshold: Annotated[
        int | None, Meta(description="Not served yet.", extra={UNSERVED: (0,)})
    ] = None

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    def sampling(self, owner: str) -> dict[str, Any]:
        """The keyword arguments of `GenerateRequest` that these fields fill."""
        if self.stream_options is not None and not self.stream:
            raise InvalidField(
                "stream_options goes only with stream: send stream true, or leave it out",
                param="stream_options",
            )
        renamed = self.min_tokens is None and self.min_new_tokens is not None
        return {
            "model": self.model,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "min_p": self.min_p,
            "repetition_penalty": self.repetition_penalty,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
            "seed": self.seed,
            "min_tokens": self.min_new_tokens if renamed else self.min_tokens,
            "stop": (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ()),
            "stop_token_ids": tuple(self.stop_token_ids or ()),
            "ignore_eos": bool(self.ignore_eos),
            "skip_special_tokens": self.skip_special_tokens is not False,
            "params": {"min_tokens": "min_new_tokens"} if renamed else {},
            "priority": self.priority or 0,
            "deadline_s": self.deadline_s,
            "owner": owner,
            "session_id": None if self.session_id == -1 else self.session_id,
        }


class PromptTokensDetails(Struct, kw_only=True):
    cached_tokens: Annotated[
        int, Meta(description="Prompt tokens whose KV was found in the prefix tree.")
    ]


class UsageInfo(Struct, kw_only=True):
    """Tokens of one answer."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails

    @classmethod
    def of(cls, *usages: Usage) -> UsageInfo:
        """The sum over all answers of one call."""
        prompt = sum(usage.prompt_tokens for usage in usages)
        completion = sum(usage.completion_tokens for usage in usages)
        return cls(
            prompt_tokens=prompt,
            completion_tokens=completion,
            total_tokens=prompt + completion,
            prompt_tokens_details=PromptTokensDetails(
                cached_tokens=sum(usage.cached_tokens for usage in usages)
            ),
        )
