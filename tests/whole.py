"""Answers read to their end, with all that they tell."""

from __future__ import annotations

from dataclasses import dataclass

from lmserve.messages import TokenLogprob
from lmserve.service.generate import Generation, read
from lmserve.service.parts import joined
from lmserve.types import Done, Part, TextDelta


@dataclass(slots=True)
class Whole:
    text: str
    token_ids: list[int]  # less the hidden end token
    done: Done
    parts: list[Part]  # joined; where `splits` was asked for
    logprobs: list[TokenLogprob]  # of `token_ids`, where asked for


async def gather(generation: Generation) -> Whole:
    deltas: list[TextDelta] = []
    done = await read(generation, deltas.append)
    return Whole(
        "".join([delta.text for delta in deltas]),
        [id for delta in deltas for id in delta.token_ids] + generation.unshown_ids,
        done,
        joined([part for delta in deltas for part in delta.parts or ()]),
        [logprob for delta in deltas for logprob in delta.logprobs or ()],
    )
