"""What the fake engine says: a given list of steps, or words without end."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

from lmserve.bridge import assets
from lmserve.messages import SequenceOutput, pack_ids

Piece = str | list[int]  # what one step says: text, or token ids
Script = Iterator[SequenceOutput]

# A mock step says the same word to everybody; mailboxes only read it.
_WORD_IDS = tuple(range(assets.FIRST_WORD_ID, assets.VOCAB_SIZE))
_WORD_OUTPUTS = tuple(SequenceOutput(0, pack_ids([id]), queue_s=0.0) for id in _WORD_IDS)


def steps_of(pieces: Iterable[Piece]) -> list[SequenceOutput]:
    """A text's token ids are its bytes."""
    return [
        SequenceOutput(
            0, pack_ids(list(piece.encode()) if isinstance(piece, str) else piece), queue_s=0.0
        )
        for piece in pieces
    ]


def script_after(given: list[SequenceOutput] | None, max_tokens: int, num_steps: int = 0) -> Script:
    """What is said after so many steps."""
    if given is None:
        return _endless(max_tokens, num_steps)
    num_bytes = sum([len(output.token_ids) for output in given[:num_steps]])
    return _cut(given[num_steps:], max_tokens, num_bytes)


def _endless(max_tokens: int, num_said: int) -> Script:
    """Words, all requests' n-th step saying the same one, until max_tokens."""
    if num_said >= max_tokens:
        yield SequenceOutput(0, b"", finish="length")
        return
    yield from itertools.islice(itertools.cycle(_WORD_OUTPUTS), num_said, max_tokens - 1)
    last = _WORD_OUTPUTS[(max_tokens - 1) % len(_WORD_OUTPUTS)]
    yield SequenceOutput(0, last.token_ids, finish="length", queue_s=0.0)


def _cut(script: list[SequenceOutput], max_tokens: int, num_bytes: int) -> Script:
    """The script, cut with `length` where it says more than max_tokens."""
    budget = 4 * max_tokens - num_bytes  # in bytes of packed ids
    if num_bytes and budget <= 0:
        yield SequenceOutput(0, b"", finish="length")
        return
    for output in script:
        if len(output.token_ids) > budget:
            yield SequenceOutput(0, output.token_ids[:budget], finish="length", queue_s=0.0)
            return
        budget -= len(output.token_ids)
        yield output
