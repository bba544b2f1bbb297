"""How likely the model finds texts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lmserve.sampling import SamplingParams
from lmserve.service import limits
from lmserve.service.generation import Generation
from lmserve.service.prompt import ModelText
from lmserve.service.rating.prompts import Prompts
from lmserve.service.work import Run
from lmserve.types import GenerateRequest


@dataclass(frozen=True, slots=True)
class Likelihood:
    """Of some tokens, those before them given."""

    logprob: float  # the sum
    num_tokens: int  # that it is the sum of
    num_prompt_tokens: int  # that were run, with these
    model: str


async def score(
    prompts: Prompts, requests: Sequence[GenerateRequest], labels: Sequence[str | Sequence[int]]
) -> list[list[Likelihood]]:
    """Of each label after each prompt; a text goes on from it. What prompts have in common is run
    once."""

    def make(text: ModelText, encoded: list[list[int]]) -> list[Run]:
        labels_ids = [_label_ids(text, label, index) for index, label in enumerate(labels)]
        limits.check_labels(labels_ids, text.info.vocab_size)
        return [
            Run(index, ids, _rated_from(len(ids)), label)
            for index, ids in enumerate(encoded)
            for label in labels_ids
        ]

    found = [_likelihood(each) for each in await prompts.run(requests, make)]
    num = len(labels)
    return [found[start : start + num] for start in range(0, len(found), num)]


async def perplexity(prompts: Prompts, requests: Sequence[GenerateRequest]) -> list[Likelihood]:
    """Of each prompt, less its first token."""

    def make(_: ModelText, encoded: list[list[int]]) -> list[Run]:
        return [Run(index, ids, _rated_from(0)) for index, ids in enumerate(encoded)]

    return [_likelihood(each) for each in await prompts.run(requests, make)]


def _label_ids(text: ModelText, label: str | Sequence[int], index: int) -> Sequence[int]:
    if not isinstance(label, str):
        return label
    text.check_length(GenerateRequest(params={"prompt": f"labels[{index}]"}), len(label))
    return text.tokenizer.encode_further(label)


def _rated_from(start: int) -> SamplingParams:
    return SamplingParams(
        temperature=0.0, max_tokens=0, prompt_logprobs=0, prompt_logprobs_start=start
    )


def _likelihood(generation: Generation) -> Likelihood:
    logprobs = [each.logprob for each in generation.prompt_logprobs]
    return Likelihood(
        math.fsum(logprobs), len(logprobs), generation.num_prompt_tokens, generation.model
    )
