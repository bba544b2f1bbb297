"""Of how tokens are chosen, how many, and where the answer ends."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

import msgspec

from lmserve.errors import InvalidField
from lmserve.messages import EngineInfo
from lmserve.sampling import SamplingParams
from lmserve.service.limits.field import check_count, check_ids, name_of
from lmserve.service.limits.tokens import check_stops, logit_bias
from lmserve.service.limits.told import check_longer, logprobs_of
from lmserve.types import GenerateRequest

MAX_STOP_TOKEN_IDS = 256
_INT64 = 2**63

# name: (least, greatest, words for people)
_RANGES: dict[str, tuple[float, float, str]] = {
    "temperature": (0.0, 2.0, "from 0 (greedy) to 2"),
    "top_p": (math.ulp(0.0), 1.0, "above 0 and at most 1"),
    "min_p": (0.0, 1.0, "from 0 to 1"),
    "repetition_penalty": (0.01, 2.0, "from 0.01 to 2"),
    "presence_penalty": (-2.0, 2.0, "from -2 to 2"),
    "frequency_penalty": (-2.0, 2.0, "from -2 to 2"),
}
_DEFAULTS = SamplingParams()


def sampling_params(request: GenerateRequest, info: EngineInfo) -> SamplingParams:
    """The request's values over the model's defaults over ours, each checked. `max_tokens` is
    not yet cut to what fits: `fit` does that when the prompt's length is known. What takes the
    model's text to say (bad words, grammars) is added by those who have it."""
    max_tokens, min_tokens = _token_bounds(request, info)
    check_stops(request.stop, name_of(request, "stop"))
    check_ids(request.stop_token_ids, "stop_token_ids", info.vocab_size)
    check_count(request.stop_token_ids, MAX_STOP_TOKEN_IDS, "stop_token_ids", "ids")
    check_ids(request.allowed_token_ids, name_of(request, "allowed_token_ids"), info.vocab_size)
    logprobs, prompt_logprobs, prompt_logprobs_start = logprobs_of(request)
    numbers: dict[str, Any] = {name: _number(name, request, info) for name in _RANGES}
    return SamplingParams(
        **numbers,
        top_k=_top_k(request, info),
        seed=_seed(request),
        max_tokens=max_tokens,
        min_tokens=min_tokens,
        stop_token_ids=tuple(request.stop_token_ids),
        ignore_eos=request.ignore_eos,
        logit_bias=logit_bias(request, info),
        allowed_token_ids=tuple(dict.fromkeys(request.allowed_token_ids)),
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
        prompt_logprobs_start=prompt_logprobs_start,
        tell_progress=request.tell_progress,
    )


def changed(
    sampling: SamplingParams,
    num_prompt_tokens: int,
    info: EngineInfo,
    *,
    max_tokens: int | None = None,
    temperature: float | None = None,
    stop: Sequence[str] | None = None,
) -> SamplingParams:
    """The settings of a running answer with these changes, checked as those of a new one."""
    if max_tokens is None and temperature is None and stop is None:
        raise InvalidField("nothing is changed: give max_tokens, temperature or stop")
    check_stops(stop or ())
    if max_tokens is None:
        max_tokens = sampling.max_tokens
    asked = GenerateRequest(
        temperature=sampling.temperature if temperature is None else temperature,
        max_tokens=max_tokens,
        min_tokens=min(sampling.min_tokens, max_tokens),
    )
    max_tokens, min_tokens = _token_bounds(asked, info)
    max_tokens = min(max_tokens, info.max_model_len - num_prompt_tokens)
    check_longer(sampling, max_tokens)
    return msgspec.structs.replace(
        sampling,
        temperature=_number("temperature", asked, info),
        max_tokens=max_tokens,
        min_tokens=min_tokens,
    )


def seed_after(seed: int, index: int) -> int:
    """That of the choice of this index, where the first has `seed`."""
    return (seed + index + _INT64) % (2 * _INT64) - _INT64


def _token_bounds(request: GenerateRequest, info: EngineInfo) -> tuple[int, int]:
    max_tokens, min_tokens = request.max_tokens, request.min_tokens or 0
    max_name, min_name = name_of(request, "max_tokens"), name_of(request, "min_tokens")
    least = 0 if request.may_be_empty or request.prompt_logprobs is not None else 1
    if max_tokens is not None and max_tokens < least:
        raise InvalidField(
            f"{max_name} is {max_tokens}: it must be at least {least}; leave it out for the "
            "default",
            param=max_name,
        )
    if min_tokens < 0:
        raise InvalidField(f"{min_name} is {min_tokens}: it must be at least 0", param=min_name)
    most = info.max_model_len if max_tokens is None else max_tokens
    if min_tokens > most:
        raise InvalidField(
            f"{min_name} is {min_tokens}, more than the {most} tokens the answer may have: lower "
            f"it or raise {max_name}",
            param=min_name,
        )
    return min(most, info.max_model_len), min_tokens


def _number(name: str, request: GenerateRequest, info: EngineInfo) -> float:
    least, greatest, words = _RANGES[name]
    given = getattr(request, name)
    if given is not None:
        # a NaN fails every comparison
        if not least <= given <= greatest:
            param = name_of(request, name)
            raise InvalidField(f"{param} is {given}: it must be {words}", param=param)
        return float(given)
    default = info.generation_defaults.get(name)
    if default is not None and least <= default <= greatest:
        return float(default)
    return float(getattr(_DEFAULTS, name))


def _top_k(request: GenerateRequest, info: EngineInfo) -> int:
    """0 is off; so is the -1 that clients of other servers send."""
    given = request.top_k
    if given is None:
        default = int(info.generation_defaults.get("top_k", _DEFAULTS.top_k))
        return min(max(default, 0), info.vocab_size)
    if not -1 <= given <= info.vocab_size:
        param = name_of(request, "top_k")
        raise InvalidField(
            f"{param} is {given}: it must be from 1 to {info.vocab_size} (the vocabulary), or 0 "
            "or -1 for off",
            param=param,
        )
    return max(given, 0)


def _seed(request: GenerateRequest) -> int:
    given = request.seed
    if given is None:
        return random.getrandbits(63)
    if not -_INT64 <= given < _INT64:
        param = name_of(request, "seed")
        raise InvalidField(
            f"{param} must be a 64-bit integer, from {-_INT64} to {_INT64 - 1}", param=param
        )
    return given
