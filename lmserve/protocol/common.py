"""What every generating request may be asked with: sampling, stream options, how it waits.

A request field is always optional in the wire's sense: `null` means absent.
"""

from __future__ import annotations

import re
from typing import Annotated, Any

from msgspec import Meta, Struct

from lmserve.errors import InvalidField
from lmserve.protocol.structured import ResponseFormat, StructuredOutputs, structure_of
from lmserve.protocol.unserved import UnservedFields


class StreamOptions(Struct, kw_only=True):
    """Options of a streamed answer."""

    include_usage: Annotated[
        bool | None, Meta(description="Send one more chunk before `[DONE]`, holding the usage.")
    ] = None
    continuous_usage_stats: Annotated[
        bool | None, Meta(description="With `include_usage`: the usage so far in every chunk.")
    ] = None
    include_obfuscation: Annotated[
        bool | None, Meta(description="Accepted, not used: nothing is added to events.")
    ] = None


_TOKEN_ID = re.compile(r"-?[0-9]{1,19}")

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


class SamplingFields(UnservedFields, kw_only=True):
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
    logit_bias: Annotated[
        dict[str, float] | None,
        Meta(description="Token ids, as text, and -100 to 100 to add to the logit of each."),
    ] = None
    allowed_token_ids: Annotated[
        list[int] | None, Meta(description="Only these tokens may be chosen.")
    ] = None
    bad_words: Annotated[
        list[str] | None, Meta(description="Texts whose tokens are never chosen in a row.")
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
    cache_salt: Annotated[
        str | None,
        Meta(
            description="Only requests with the same salt, up to 256 characters, reuse each "
            "other's KV. Those of one API key never reuse another's."
        ),
    ] = None
    session_id: Annotated[
        int | None,
        Meta(
            description="A number of yours by which `POST /abort_request` ends the answer; -1: "
            "none. Each call stands alone: `/v1/chat/interactive` keeps conversations."
        ),
    ] = None

    response_format: Annotated[
        ResponseFormat | None, Meta(description="What the answer has to be. Default: any text.")
    ] = None
    structured_outputs: Annotated[
        StructuredOutputs | None, Meta(description="The same in vLLM's words.")
    ] = None
    guided_json: Annotated[
        dict[str, Any] | bool | str | None,
        Meta(description="The same as vLLM had it: the answer is JSON of this schema."),
    ] = None
    guided_regex: Annotated[
        str | None, Meta(description="The whole answer matches this regular expression.")
    ] = None
    guided_choice: Annotated[
        list[str] | None, Meta(description="The answer is one of these texts.")
    ] = None
    guided_grammar: Annotated[
        str | None, Meta(description="The answer obeys this grammar, in Lark or GBNF.")
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
            "logit_bias": token_biases(self.logit_bias or {}),
            "allowed_token_ids": tuple(self.allowed_token_ids or ()),
            "bad_words": tuple(self.bad_words or ()),
            "structure": structure_of(self),
            "ignore_eos": bool(self.ignore_eos),
            "skip_special_tokens": self.skip_special_tokens is not False,
            "params": {"min_tokens": "min_new_tokens"} if renamed else {},
            "priority": self.priority or 0,
            "deadline_s": self.deadline_s,
            "cache_salt": self.cache_salt or "",
            "owner": owner,
            "session_id": None if self.session_id == -1 else self.session_id,
        }


def token_biases(given: dict[str, float]) -> dict[int, float]:
    """The keys of `logit_bias` as the integers they spell. Raises InvalidField."""
    for name in given:
        if not _TOKEN_ID.fullmatch(name):
            raise InvalidField(
                f"logit_bias has the key {name[:50]!r}: its keys are token ids",
                param="logit_bias",
            )
    return {int(name): bias for name, bias in given.items()}
