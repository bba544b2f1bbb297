"""What the fake engine says: a given list of steps, or words without end."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

import msgspec

from lmserve.bridge import assets, inventions
from lmserve.messages import SequenceOutput, pack_ids, unpack_ids
from lmserve.sampling import SamplingParams

PROMPT_CHUNK = 256  # tokens of a prompt run in a step, where somebody looks
Piece = str | list[int]  # what one step says: text, or token ids
Script = Iterator[SequenceOutput]

# A mock step says the same word to everybody; mailboxes only read it.
_WORD_IDS = tuple(range(assets.FIRST_WORD_ID, assets.VOCAB_SIZE))
_WORD_OUTPUTS = tuple(SequenceOutput(0, pack_ids([id]), queue_s=0.0) for id in _WORD_IDS)


def steps_of(pieces: Iterable[Piece]) -> list[SequenceOutput]:
    """A text's token ids are its bytes. As the engine does, the first tells how long it waited."""
    steps = [
        SequenceOutput(0, pack_ids(list(piece.encode()) if isinstance(piece, str) else piece))
        for piece in pieces
    ]
    for first in steps[:1]:
        first.queue_s = 0.0
    return steps


def script_after(
    given: list[SequenceOutput] | None,
    prompt: list[int],
    sampling: SamplingParams,
    num_steps: int = 0,
) -> Script:
    """What is said after so many steps."""
    prompt_steps = _prompt_steps(prompt, sampling)
    num_before = max(0, len(prompt_steps) - 1)  # the last comes with the first token
    after = max(0, num_steps - num_before)
    if sampling.pooling is not None and given is None:
        embedding = inventions.embedding_of(prompt, sampling.pooling)
        script: Script = iter([SequenceOutput(0, b"", 0, "stop", queue_s=0.0, embedding=embedding)])
    elif given is None:
        script = _endless(sampling.max_tokens, after)
    else:
        num_bytes = sum([len(output.token_ids) for output in given[:after]])
        script = _cut(given[after:], sampling.max_tokens, num_bytes)
    if sampling.logprobs is not None:
        script = _with_logprobs(script, sampling.logprobs)
    if num_steps < len(prompt_steps):
        script = _after_prompt(prompt_steps[num_steps:], script)
    return script


def _endless(max_tokens: int, num_said: int) -> Script:
    """Words, all requests' n-th step saying the same one, until max_tokens."""
    if num_said >= max_tokens:
        return iter([SequenceOutput(0, b"", finish="length", queue_s=0.0)])
    words = itertools.chain.from_iterable(itertools.repeat(_WORD_OUTPUTS))
    last = _WORD_OUTPUTS[(max_tokens - 1) % len(_WORD_OUTPUTS)]
    return itertools.chain(
        itertools.islice(words, num_said, max_tokens - 1),
        [SequenceOutput(0, last.token_ids, finish="length", queue_s=0.0)],
    )


def _cut(script: list[SequenceOutput], max_tokens: int, num_bytes: int) -> Script:
    """The script, cut with `length` where it says more than max_tokens."""
    budget = 4 * max_tokens - num_bytes  # in bytes of packed ids
    if num_bytes and budget <= 0:
        yield SequenceOutput(0, b"", finish="length")
        return
    for output in script:
        if len(output.token_ids) > budget:
            token_ids = output.token_ids[:budget]
            cut = {"token_ids": token_ids, "finish": "length", "stop_token_id": None}
            yield msgspec.structs.replace(output, **cut)
            return
        budget -= len(output.token_ids)
        yield output


# --- what some ask for beside the tokens -----------------------------------------------------


def _with_logprobs(script: Script, num_top: int) -> Script:
    for output in script:
        if output.token_ids:
            logprobs = inventions.logprobs_of(unpack_ids(output.token_ids), num_top)
            output = msgspec.structs.replace(output, logprobs=logprobs)
        yield output


def _prompt_steps(prompt: list[int], sampling: SamplingParams) -> list[SequenceOutput]:
    """What is said of the prompt while it is run."""
    num_top = sampling.prompt_logprobs
    if num_top is None and not sampling.tell_progress:
        return []
    steps = []
    for start in range(0, len(prompt), PROMPT_CHUNK):
        end = min(start + PROMPT_CHUNK, len(prompt))
        step = SequenceOutput(0, b"", queue_s=0.0)
        if sampling.tell_progress:
            step.num_prompt_run = end
        first = max(start, sampling.prompt_logprobs_start, 1)
        if num_top is not None and first < end:
            step.prompt_logprobs = inventions.logprobs_of(prompt[first:end], num_top)
        steps.append(step)
    return steps


def _after_prompt(steps: list[SequenceOutput], script: Script) -> Script:
    """The prompt's steps, the last of which says the first token."""
    yield from steps[:-1]
    last = steps[-1]
    yield msgspec.structs.replace(
        next(script, last),
        num_prompt_run=last.num_prompt_run,
        prompt_logprobs=last.prompt_logprobs,
    )
    yield from script
