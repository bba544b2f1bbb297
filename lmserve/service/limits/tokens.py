"""Of texts and tokens that an answer must not have, or is made to."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from lmserve.errors import InvalidField
from lmserve.messages import EngineInfo
from lmserve.sampling import SamplingParams
from lmserve.service.limits.field import check_count, name_of
from lmserve.types import GenerateRequest

MAX_STOPS = 16
MAX_LOGIT_BIAS = 1024
MAX_BIAS = 100.0
MAX_BAD_WORDS = 128
MAX_BAD_WORD_CHARS = 256


def check_stops(stops: Sequence[str], param: str = "stop") -> None:
    """As long as they like: see `attainable`."""
    check_count(stops, MAX_STOPS, param, "strings")
    for index, stop in enumerate(stops):
        if not stop:
            raise InvalidField(
                f"{param}[{index}] is empty: give at least one character, or leave it out",
                param=f"{param}[{index}]",
            )


def attainable(stops: Sequence[str], max_tokens: int, max_token_chars: int) -> tuple[str, ...]:
    """Those that an answer of so many tokens can hold: others are never met."""
    most = max_tokens * max_token_chars
    return tuple(stop for stop in stops if len(stop) <= most)


def logit_bias(request: GenerateRequest, info: EngineInfo) -> tuple[tuple[int, float], ...]:
    """By token id."""
    given = request.logit_bias
    if not given:
        return ()
    name = name_of(request, "logit_bias")
    check_count(given, MAX_LOGIT_BIAS, name, "entries")
    for id, bias in given.items():
        if not 0 <= id < info.vocab_size:
            raise InvalidField(
                f"{name} names the token {id}: token ids go from 0 to {info.vocab_size - 1}",
                param=f"{name}.{id}",
            )
        if not -MAX_BIAS <= bias <= MAX_BIAS:  # a NaN fails every comparison
            raise InvalidField(
                f"{name}.{id} is {bias}: it must be from {-MAX_BIAS:g} to {MAX_BIAS:g}",
                param=f"{name}.{id}",
            )
    return tuple(sorted((id, float(bias)) for id, bias in given.items()))


def with_bad_words(
    request: GenerateRequest,
    sampling: SamplingParams,
    encodings: Callable[[str], Sequence[Sequence[int]]],
    info: EngineInfo,
) -> SamplingParams:
    """And with the token sequences of its bad words: `encodings` has those of a text, at the
    beginning of a text and within one. Raises where no token would be left to choose."""
    words = request.bad_words
    if not words and not sampling.allowed_token_ids:
        return sampling
    name = name_of(request, "bad_words")
    check_count(words, MAX_BAD_WORDS, name, "texts")
    found: dict[tuple[int, ...], None] = {}
    for index, word in enumerate(words):
        _check_word(word, f"{name}[{index}]")
        encoded = encodings(word.lstrip() or word)
        # others have tokens that the model cannot say
        sequences = [tuple(ids) for ids in encoded if ids and max(ids) < info.vocab_size]
        # one that ends in another is never reached
        found |= dict.fromkeys(ids for ids in sequences if not _ends_in_other(ids, sequences))
    sampling = msgspec.structs.replace(sampling, bad_words=tuple(found))
    _check_some_left(request, sampling, info)
    return sampling


def _check_word(word: str, param: str) -> None:
    if not 1 <= len(word) <= MAX_BAD_WORD_CHARS:
        raise InvalidField(
            f"{param} has {len(word)} characters: it must have 1 to {MAX_BAD_WORD_CHARS}",
            param=param,
        )


def _ends_in_other(ids: tuple[int, ...], others: Sequence[tuple[int, ...]]) -> bool:
    return any(len(other) < len(ids) and ids[-len(other) :] == other for other in others)


def _check_some_left(request: GenerateRequest, sampling: SamplingParams, info: EngineInfo) -> None:
    left = set(sampling.allowed_token_ids)
    if not left:
        return
    left -= {ids[0] for ids in sampling.bad_words if len(ids) == 1}
    if sampling.min_tokens:
        left -= {*sampling.stop_token_ids, *info.eos_token_ids}
    if not left:
        name = name_of(request, "allowed_token_ids")
        raise InvalidField(
            f"{name} leaves no token to choose: what it allows is banned by bad_words or "
            "min_tokens",
            param=name,
        )
