"""`POST /v1/encode` and `POST /generate`: LMDeploy's routes for token ids."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from lmserve.errors import InvalidField
from lmserve.protocol.common import UNSERVED, SamplingFields
from lmserve.types import FinishReason, GenerateRequest, Usage

DEFAULT_MAX_TOKENS = 128


class EncodeRequest(Struct, kw_only=True):
    """Texts to tokenise."""

    input: Annotated[str | list[str], Meta(description="A text, or a list of texts.")]
    do_preprocess: Annotated[
        bool | None,
        Meta(description="Put each text through the chat template, as one turn of the user."),
    ] = False
    add_bos: Annotated[
        bool | None,
        Meta(description="Begin with the model's BOS token, where it has one. Default: true."),
    ] = True

    def to_generate(self) -> list[GenerateRequest]:
        """One request a text, in order."""
        if isinstance(self.input, str):
            return [self._request(self.input, "input")]
        return [self._request(text, f"input[{i}]") for i, text in enumerate(self.input)]

    def _request(self, text: str, param: str) -> GenerateRequest:
        params = {"prompt": param, "messages": param}
        if self.do_preprocess:
            messages = [{"role": "user", "content": text}]
            return GenerateRequest(messages=messages, params=params)
        return GenerateRequest(text=text, params=params)

    def answer(self, encoded: list[list[int]]) -> bytes:
        """The body that answers, given each text's ids."""
        if isinstance(self.input, str):
            (ids,) = encoded
            answer = EncodeResponse(input_ids=list(ids), length=len(ids))
        else:
            answer = EncodeResponse(input_ids=list(encoded), length=[len(ids) for ids in encoded])
        return msgspec.json.encode(answer)


class EncodeResponse(Struct, kw_only=True):
    """Of one text its ids, of a list a list of those."""

    input_ids: list[int | list[int]]
    length: int | list[int]


class GenerateReqInput(SamplingFields, kw_only=True):
    """A prompt to continue, in text or in token ids: give one of the two."""

    prompt: Annotated[
        str | None, Meta(description="Text, sent to the model without the chat template.")
    ] = None
    input_ids: Annotated[list[int] | None, Meta(description="Token ids.")] = None
    max_tokens: Annotated[int | None, Meta(description="Longest answer in tokens.")] = (
        DEFAULT_MAX_TOKENS
    )
    top_logprobs_num: Annotated[
        int | None, Meta(description="Not served yet.", extra={UNSERVED: (0,)})
    ] = None
    logprob_start_len: Annotated[
        int | None, Meta(description="Not served yet.", extra={UNSERVED: (-1,)})
    ] = None

    def to_generate(self, owner: str = "") -> GenerateRequest:
        if (self.prompt is None) == (self.input_ids is None):
            raise InvalidField("give exactly one of prompt and input_ids", param="prompt")
        limit = DEFAULT_MAX_TOKENS if self.max_tokens is None else self.max_tokens
        common = self.sampling(owner) | {"max_tokens": limit}
        if self.input_ids is not None:
            common["params"]["prompt"] = "input_ids"
        return GenerateRequest(text=self.prompt, token_ids=self.input_ids, **common)


class GenerateFinishReason(Struct, kw_only=True):
    type: FinishReason


class GenerateReqMetaOutput(Struct, kw_only=True):
    """Tokens so far, and how the answer ended."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: Annotated[
        int, Meta(description="Prompt tokens whose KV was found in the prefix tree.")
    ]
    finish_reason: Annotated[
        GenerateFinishReason | None,
        Meta(description="Null in all chunks of a stream but the last."),
    ] = None
    output_token_logprobs: list[Any] | None = None
    input_token_logprobs: list[Any] | None = None
    output_top_logprobs: list[Any] | None = None
    input_top_logprobs: list[Any] | None = None
    routed_experts: list[Any] | None = None


class GenerateReqOutput(Struct, kw_only=True):
    """An answer, or what a chunk of a stream adds to it."""

    text: str
    output_ids: Annotated[list[int], Meta(description="Without the token that ended the answer.")]
    meta_info: GenerateReqMetaOutput


def encode_output(
    text: str, output_ids: list[int], usage: Usage, reason: FinishReason | None
) -> bytes:
    """An answer or a chunk, as JSON."""
    return msgspec.json.encode(
        GenerateReqOutput(
            text=text,
            output_ids=output_ids,
            meta_info=GenerateReqMetaOutput(
                prompt_tokens=usage.prompt_tokens,
                completion_tokens=usage.completion_tokens,
                cached_tokens=usage.cached_tokens,
                finish_reason=None if reason is None else GenerateFinishReason(type=reason),
            ),
        )
    )
