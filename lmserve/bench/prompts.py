"""Prompts of random words, sized in tokens of the model served, no two alike.

How many tokens a word makes, and how many the template adds, the server is asked: two requests
of known length, whose usage counts them.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from lmserve.bench.client import Client, Prompt
from lmserve.bench.words import words
from lmserve.bench.workload import Workload
from lmserve.errors import SetupError

FEW, MANY = 20, 220  # words of the two requests that measure


@dataclass(frozen=True, slots=True)
class Sizes:
    """Of one server and shared prefix."""

    tokens_per_word: float
    added_tokens: float  # by the template, and the shared prefix if there is one
    prefix: str = ""

    def num_words(self, tokens: float) -> int:
        return max(1, round(tokens / self.tokens_per_word))


async def measure(client: Client, work: Workload, seed: str) -> Sizes:
    """Asks the server with the workload's prefix, so that this is in its cache when it has one."""
    rng = random.Random(f"{seed}/sizes")
    plain = await _sizes(client, "", rng)
    if not work.shared_prefix_tokens:
        return plain
    prefix = words(random.Random(f"{seed}/prefix"), plain.num_words(work.shared_prefix_tokens))
    return await _sizes(client, prefix, rng)


async def _sizes(client: Client, prefix: str, rng: random.Random) -> Sizes:
    counts = []
    for num_words in (FEW, MANY):
        answer = await client.ask(Prompt(prefix, words(rng, num_words)), max_tokens=1)
        if answer.error:
            raise SetupError(f"the server did not answer the first request: {answer.error}")
        if not answer.prompt_tokens:
            raise SetupError(
                "the server counts no tokens: its stream has no usage.prompt_tokens, "
                "which the size of prompts is taken from"
            )
        counts.append(answer.prompt_tokens)
    per_word = max(0.2, (counts[1] - counts[0]) / (MANY - FEW))
    return Sizes(per_word, counts[0] - FEW * per_word, prefix)


def prompts(work: Workload, sizes: Sizes, seed: str) -> Iterator[Prompt]:
    """As many as wanted; the same for the same seed."""
    rng = random.Random(f"{seed}/{work.name}")
    tokens = work.prompt_tokens + work.shared_prefix_tokens - sizes.added_tokens
    while True:
        yield Prompt(sizes.prefix, words(rng, sizes.num_words(tokens)))
