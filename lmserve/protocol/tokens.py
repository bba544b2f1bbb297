"""`POST /v1/encode` and `POST /generate`: LMDeploy's routes for token ids."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from lmserve.errors import InvalidField
from lmserve.messages import TokenLogprob
from lmserve.protocol.common import SamplingFields
from lmserve.protocol.inputs import check_num
from lmserve.protocol.logprobs import Pair, pair, top_pairs
from lmserve.protocol.openai.pieces import Pieces
from lmserve.protocol.openai.plain import IncludeStop
from lmserve.protocol.openai.teller import Source
from lmserve.types import Done, FinishReason, GenerateRequest, TextDelta

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
        check_num(self.input, "input")
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
    return_logprob: Annotated[
        bool | None, Meta(description="Give the log probability of each token of the answer.")
    ] = None
    top_logprobs_num: Annotated[
        int | None, Meta(description="With `return_logprob`: so many of the likeliest each.")
    ] = None
    logprob_start_len: Annotated[
        int | None,
        Meta(
            description="With `return_logprob`: those of the prompt too, from this token on. -1 "
            "(default): none of it."
        ),
    ] = None
    include_stop_str_in_output: IncludeStop = None
    return_token_ids: Annotated[
        bool | None, Meta(description="Accepted: `output_ids` are always given.")
    ] = None

    def to_generate(self, owner: str = "") -> GenerateRequest:
        if (self.prompt is None) == (self.input_ids is None):
            raise InvalidField("give exactly one of prompt and input_ids", param="prompt")
        common = self.sampling(owner)
        if self.input_ids is not None:
            common["params"]["prompt"] = "input_ids"
        return GenerateRequest(text=self.prompt, token_ids=self.input_ids, **common)

    def sampling(self, owner: str) -> dict[str, Any]:
        num = (self.top_logprobs_num or 0) if self.return_logprob else None
        start = self.prompt_start
        common = super().sampling(owner) | {
            "max_tokens": DEFAULT_MAX_TOKENS if self.max_tokens is None else self.max_tokens,
            "logprobs": num,
            "prompt_logprobs": None if start is None else num,
            "prompt_logprobs_start": start or 0,
            "include_stop": bool(self.include_stop_str_in_output),
        }
        if num is not None:
            common["params"] |= {
                "logprobs": "top_logprobs_num",
                "prompt_logprobs": "top_logprobs_num",
                "prompt_logprobs_start": "logprob_start_len",
            }
        return common

    @property
    def prompt_start(self) -> int | None:
        """From where on the prompt's are given; None: they are not."""
        start = -1 if self.logprob_start_len is None else self.logprob_start_len
        if not self.return_logprob:
            for name, given in (
                ("top_logprobs_num", bool(self.top_logprobs_num)),
                ("logprob_start_len", start != -1),
            ):
                if given:
                    raise InvalidField(
                        f"{name} goes only with return_logprob: send it true, or leave it out",
                        param=name,
                    )
        return None if start == -1 else start


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
    output_token_logprobs: Annotated[
        list[Pair] | None,
        Meta(
            description="With `return_logprob`: [log probability, token id] of each of "
            "`output_ids`."
        ),
    ] = None
    input_token_logprobs: Annotated[
        list[Pair] | None,
        Meta(
            description="With `logprob_start_len`, the same of the prompt, in the first chunk; "
            "the very first token has null."
        ),
    ] = None
    output_top_logprobs: Annotated[
        list[list[Pair]] | None, Meta(description="With `top_logprobs_num`: the likeliest each.")
    ] = None
    input_top_logprobs: list[list[Pair] | None] | None = None
    routed_experts: list[Any] | None = None


class GenerateReqOutput(Struct, kw_only=True):
    """An answer, or what a chunk of a stream adds to it."""

    text: str
    output_ids: Annotated[list[int], Meta(description="Without the token that ended the answer.")]
    meta_info: GenerateReqMetaOutput


class OutputEncoder:
    """Of one answer, in chunks or whole."""

    def __init__(self, asked: GenerateReqInput, source: Source):
        self._source = source
        self._has_logprobs = bool(asked.return_logprob)
        self._has_top = bool(asked.top_logprobs_num)
        self._prompt_start = asked.prompt_start
        self._pieces = Pieces()

    def add(self, delta: TextDelta) -> None:
        """More of what is told next."""
        self._pieces.add(delta)

    def chunk(self, delta: TextDelta) -> bytes:
        self.add(delta)
        return self._encode(None)

    def end(self, done: Done) -> bytes:
        """What is left, or the whole."""
        self._pieces.token_ids += self._source.unshown_ids
        return self._encode(done)

    def _encode(self, done: Done | None) -> bytes:
        pieces, self._pieces = self._pieces, Pieces()
        usage = self._source.usage if done is None else done.usage
        reason = None if done is None else GenerateFinishReason(type=done.finish_reason)
        return msgspec.json.encode(
            GenerateReqOutput(
                text=pieces.text,
                output_ids=pieces.token_ids,
                meta_info=GenerateReqMetaOutput(
                    prompt_tokens=usage.prompt_tokens,
                    completion_tokens=usage.completion_tokens,
                    cached_tokens=usage.cached_tokens,
                    finish_reason=reason,
                    **self._logprobs(pieces.logprobs),
                ),
            )
        )

    def _logprobs(self, logprobs: list[TokenLogprob]) -> dict[str, Any]:
        if not self._has_logprobs:
            return {}
        told: dict[str, Any] = {"output_token_logprobs": [*map(pair, logprobs)]}
        if self._has_top:
            told["output_top_logprobs"] = [*map(top_pairs, logprobs)]
        start, self._prompt_start = self._prompt_start, None
        if start is not None:
            told |= self._of_prompt(start)
        return told

    def _of_prompt(self, start: int) -> dict[str, Any]:
        source = self._source
        first: list[Pair] = [] if start else [(None, source.prompt_ids[0])]
        told: dict[str, Any] = {
            "input_token_logprobs": [*first, *map(pair, source.prompt_logprobs)]
        }
        if self._has_top:
            tops = map(top_pairs, source.prompt_logprobs)
            told["input_top_logprobs"] = [*[None for _ in first], *tops]
        return told
