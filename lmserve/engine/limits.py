"""What of a request cannot be run. The service refuses more, with better words."""

from __future__ import annotations

from collections.abc import Collection

from lmserve.errors import InvalidField, PromptTooLong, RequestError
from lmserve.sampling import SamplingParams

LARGEST_BIAS = 1e30


def check_prompt(
    ids: list[int], sampling: SamplingParams, vocab_size: int, max_model_len: int
) -> None:
    """Raises RequestError."""
    if not ids:
        raise RequestError("the prompt has no tokens; send at least one")
    chooses = sampling.max_tokens > 0 and sampling.pooling is None
    if len(ids) + chooses > max_model_len:
        raise PromptTooLong(
            f"the prompt has {len(ids)} tokens and leaves no room for an answer in a context "
            f"of {max_model_len}; shorten it"
        )
    check_ids(ids, vocab_size)


def check_ids(token_ids: Collection[int], vocab_size: int) -> None:
    for token in (min(token_ids), max(token_ids)) if token_ids else ():
        if not 0 <= token < vocab_size:
            raise InvalidField(f"token id {token} is not in the vocabulary (0 to {vocab_size - 1})")


def check_sampling(sampling: SamplingParams, vocab_size: int) -> None:
    """Raises InvalidField."""
    check_ids(sampling.stop_token_ids, vocab_size)
    check_ids([token for token, _ in sampling.logit_bias], vocab_size)
    check_ids(sampling.allowed_token_ids, vocab_size)
    for word in sampling.bad_words:
        if not word:
            raise InvalidField("a bad word has no tokens; leave it out")
        check_ids(word, vocab_size)
    for token, bias in sampling.logit_bias:
        if not abs(bias) <= LARGEST_BIAS:
            raise InvalidField(f"logit_bias of token {token} is {bias}; it must be a number")
    for name in ("max_tokens", "logprobs", "prompt_logprobs", "prompt_logprobs_start"):
        value = getattr(sampling, name)
        if value is not None and value < 0:
            raise InvalidField(f"{name} is {value}; it must be at least 0")
