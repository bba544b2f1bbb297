"""What `POST /v1/completions` is asked: text or token ids to continue, no chat template."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta

from lmserve.errors import InvalidField
from lmserve.protocol.common import SamplingFields
from lmserve.protocol.inputs import Inputs, requests_of, texts_or_ids
from lmserve.protocol.logprobs import Vocabulary
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
from lmserve.types import GenerateRequest

DEFAULT_MAX_TOKENS = 16  # as OpenAI, vLLM and LMDeploy's page-era server


class CompletionRequest(SamplingFields, kw_only=True):
    """One or several prompts to continue."""

    prompt: Annotated[
        Inputs,
        Meta(
            description="A text, a list of texts, a list of token ids, or a list of those. "
            "Each prompt gets `n` choices; up to 256 of them in a call."
        ),
    ]
    max_tokens: Annotated[
        int | None,
        Meta(description=f"Longest answer in tokens. Default: {DEFAULT_MAX_TOKENS}."),
    ] = None

    n: Num = None
    best_of: Annotated[
        int | None,
        Meta(description="Make so many, and give the `n` likeliest. Not with `stream`."),
    ] = None
    logprobs: Annotated[
        int | bool | None,
        Meta(
            description="Log probabilities of the tokens, with so many of the likeliest in each "
            "place; with `echo`, of the prompt's too."
        ),
    ] = None
    prompt_logprobs: PromptLogprobs = None
    echo: Annotated[
        bool | None,
        Meta(description="Begin with the prompt. `max_tokens` may be 0 then: nothing follows."),
    ] = None
    include_stop_str_in_output: IncludeStop = None
    return_token_ids: ReturnTokenIds = None
    return_progress: ReturnProgress = None
    return_timings: ReturnTimings = None
    stream_interval: StreamInterval = None

    suffix: Annotated[str | None, Meta(description="Not served.")] = None

    @property
    def extras(self) -> Extras:
        include, so_far = include_usage(self.stream_options)
        return Extras(
            include_usage=include,
            usage_so_far=so_far,
            logprobs=self._logprobs is not None,
            prompt_logprobs=self.prompt_logprobs is not None,
            token_ids=bool(self.return_token_ids),
            timings=bool(self.return_timings),
            progress=bool(self.return_progress and self.stream),
            interval=self.stream_interval or 1,
            echo=bool(self.echo),
        )

    @property
    def _logprobs(self) -> int | None:
        return None if self.logprobs is False else self.logprobs

    def to_generate(self, owner: str = "") -> list[GenerateRequest]:
        """One request a prompt, in order."""
        return requests_of(self.prompt, "prompt", **self.sampling(owner))

    def sampling(self, owner: str) -> dict[str, Any]:
        if self.suffix:
            raise InvalidField(
                "suffix is not served: the models here only go on from a text; leave it out",
                param="suffix",
            )
        if self.best_of is not None and self.stream and self.best_of != self.n_or_1:
            raise InvalidField(
                "best_of cannot be used with stream: the best answers are known at the end; "
                "send stream false, or n alone",
                param="best_of",
            )
        check_interval(self.stream_interval)
        return super().sampling(owner) | {
            "max_tokens": DEFAULT_MAX_TOKENS if self.max_tokens is None else self.max_tokens,
            "may_be_empty": bool(self.echo),
            "n": self.n_or_1,
            "best_of": self.best_of,
            "logprobs": self._logprobs,
            "prompt_logprobs": self._prompt_logprobs,
            "include_stop": bool(self.include_stop_str_in_output),
            "tell_progress": bool(self.return_progress and self.stream),
        }

    @property
    def n_or_1(self) -> int:
        return 1 if self.n is None else self.n

    @property
    def _prompt_logprobs(self) -> int | None:
        """Of both askers the one that wants more."""
        wanted = [self.prompt_logprobs, self._logprobs if self.echo else None]
        return max((num for num in wanted if num is not None), default=None)

    @property
    def num_prompts(self) -> int:
        texts, prompts_ids = self._prompts()
        return len(texts) + len(prompts_ids)

    def prompt_text(self, index: int, vocabulary: Vocabulary) -> str:
        """Of this one of them, where it is told."""
        if not self.echo:
            return ""
        texts, prompts_ids = self._prompts()
        if texts:
            return texts[index]
        skip = self.skip_special_tokens is not False
        return vocabulary.decode(prompts_ids[index], skip_special=skip)

    def _prompts(self) -> tuple[list[str], list[list[int]]]:
        return texts_or_ids(self.prompt, "prompt")
