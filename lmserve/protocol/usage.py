"""Tokens counted, and the time they took, as answers tell them."""

from __future__ import annotations

from typing import Annotated, Protocol

from msgspec import UNSET, Meta, Struct, UnsetType

from lmserve.types import PromptProgress, Usage


class PromptTokensDetails(Struct, kw_only=True):
    cached_tokens: Annotated[
        int, Meta(description="Prompt tokens whose KV was found in the prefix tree.")
    ]


class CompletionTokensDetails(Struct, kw_only=True):
    reasoning_tokens: Annotated[int, Meta(description="Of the answer, before it speaks.")]


class UsageInfo(Struct, kw_only=True):
    """Tokens of one answer."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: Annotated[
        CompletionTokensDetails | UnsetType, Meta(description="Where the model reasoned.")
    ] = UNSET

    @classmethod
    def of(cls, *usages: Usage, num_prompts: int | None = None) -> UsageInfo:
        """The sum over all answers of one call. Answers to the same prompt follow one another;
        it is counted once: `num_prompts`, default as many as answers."""
        num_answers = len(usages) // (num_prompts or len(usages))
        prompts = usages[::num_answers]
        prompt = sum(usage.prompt_tokens for usage in prompts)
        completion = sum(usage.completion_tokens for usage in usages)
        reasoning = sum(usage.reasoning_tokens for usage in usages)
        return cls(
            prompt_tokens=prompt,
            completion_tokens=completion,
            total_tokens=prompt + completion,
            prompt_tokens_details=PromptTokensDetails(
                cached_tokens=sum(usage.cached_tokens for usage in prompts)
            ),
            completion_tokens_details=(
                CompletionTokensDetails(reasoning_tokens=reasoning) if reasoning else UNSET
            ),
        )


class PromptProgressInfo(Struct, kw_only=True):
    """How much of the prompt has been run, as llama-server tells it."""

    total: Annotated[int, Meta(description="Tokens of the prompt.")]
    cache: Annotated[int, Meta(description="Of these, found in the prefix tree.")]
    processed: Annotated[int, Meta(description="Of all of them, done: with those found.")]
    time_ms: Annotated[int, Meta(description="Since the prompt was begun.")]

    @classmethod
    def of(cls, progress: PromptProgress) -> PromptProgressInfo:
        return cls(
            total=progress.num_tokens,
            cache=progress.num_cached,
            processed=progress.num_run,
            time_ms=round(progress.passed_s * 1000),
        )


class Timed(Protocol):
    """Where the time of an answer went."""

    @property
    def queue_s(self) -> float | None: ...
    @property
    def prompt_s(self) -> float: ...
    @property
    def answer_s(self) -> float: ...  # from its first token to its last
    @property
    def num_prompt_run(self) -> int: ...
    @property
    def num_tokens(self) -> int: ...


class TimingsInfo(Struct, kw_only=True):
    """Where the time went, in llama-server's words and some more."""

    queue_ms: Annotated[float, Meta(description="Waiting for the engine to begin.")]
    cache_n: Annotated[int, Meta(description="Tokens of the prompt found in the prefix tree.")]
    prompt_n: Annotated[int, Meta(description="The others, which were run.")]
    prompt_ms: float
    prompt_per_token_ms: float
    prompt_per_second: float
    predicted_n: Annotated[int, Meta(description="Tokens of the answer.")]
    predicted_ms: Annotated[float, Meta(description="From its first token to its last.")]
    predicted_per_token_ms: Annotated[float, Meta(description="Of those after the first.")]
    predicted_per_second: float

    @classmethod
    def of(cls, timings: Timed, usage: Usage) -> TimingsInfo:
        run, made = timings.num_prompt_run, timings.num_tokens
        return cls(
            queue_ms=_ms(timings.queue_s or 0.0),
            cache_n=usage.cached_tokens,
            prompt_n=run,
            prompt_ms=_ms(timings.prompt_s),
            prompt_per_token_ms=_ms(_ratio(timings.prompt_s, run)),
            prompt_per_second=round(_ratio(run, timings.prompt_s), 3),
            predicted_n=made,
            predicted_ms=_ms(timings.answer_s),
            predicted_per_token_ms=_ms(_ratio(timings.answer_s, made - 1)),
            predicted_per_second=round(_ratio(made - 1, timings.answer_s), 3),
        )


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)


def _ratio(amount: float, of: float) -> float:
    return amount / of if of > 0 else 0.0
