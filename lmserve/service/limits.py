"""The one validator: every limit on a request, for every route and transport.

Protocol modules check types; what a value may be is decided here and nowhere else.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from lmserve.errors import InvalidField, PromptTooLong
from lmserve.messages import EngineInfo
from lmserve.sampling import SamplingParams
from lmserve.types import GenerateRequest

MAX_STOPS = 16
MAX_STOP_CHARS = 1000
MAX_STOP_TOKEN_IDS = 256
MAX_PRIORITY = 100
MAX_DEADLINE_S = 86400
MAX_TEXTS = 1024  # tokenised in one call
MAX_METADATA = 16  # pairs that a client adds
MAX_METADATA_NAME_CHARS = 64
MAX_METADATA_CHARS = 512
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


def check_prompt(request: GenerateRequest, info: EngineInfo) -> None:
    """Exactly one kind of prompt, not empty, of tokens that exist."""
    kinds = (request.messages, request.text, request.token_ids)
    given = [value for value in kinds if value is not None]
    if len(given) != 1:
        raise InvalidField("give exactly one of messages and prompt", param=prompt_param(request))
    if not given[0] and request.history is None:  # a text may go on from its history alone
        param = prompt_param(request)
        unit = "character or token" if request.messages is None else "message"
        raise InvalidField(f"{param} is empty: give at least one {unit}", param=param)
    if request.token_ids is not None:
        _check_ids(request.token_ids, prompt_param(request), info.vocab_size)


def check_shown(request: GenerateRequest, info: EngineInfo) -> None:
    """Of a prompt that is not run: a text or tokens may be empty."""
    if request.messages is not None or request.token_ids:
        check_prompt(request, info)
    num_tokens = len(request.token_ids or ())
    if num_tokens > info.max_model_len:
        param = prompt_param(request)
        raise PromptTooLong(
            f"{param} has {num_tokens} ids, more than the context of {info.max_model_len}: send "
            "several calls",
            param=param,
            num_tokens=num_tokens,
        )


def check_length(
    request: GenerateRequest, num_chars: int, max_token_chars: int, info: EngineInfo
) -> None:
    """Refuses what cannot fit, however it is tokenised, before that costs seconds."""
    most = info.max_model_len * max_token_chars
    if num_chars > most:
        raise PromptTooLong(
            f"This model's maximum context length is {info.max_model_len} tokens, prompt and "
            f"answer together, and your prompt has {num_chars} characters, more than any {most} "
            "that could fit: shorten it.",
            param=prompt_param(request),
            num_tokens=-(-num_chars // max_token_chars),  # at least
        )


def check_texts(num_texts: int) -> None:
    """Of a call that only tokenises."""
    if num_texts > MAX_TEXTS:
        raise InvalidField(
            f"input has {num_texts} texts, more than {MAX_TEXTS}: send several calls",
            param="input",
        )


def check_metadata(metadata: Mapping[str, str]) -> None:
    """Of an answer that is kept."""
    if len(metadata) > MAX_METADATA:
        raise InvalidField(
            f"metadata has {len(metadata)} keys: give at most {MAX_METADATA}", param="metadata"
        )
    for name, value in metadata.items():
        if len(name) > MAX_METADATA_NAME_CHARS:
            raise InvalidField(
                f"metadata has a key of {len(name)} characters: give at most "
                f"{MAX_METADATA_NAME_CHARS}",
                param="metadata",
            )
        if len(value) > MAX_METADATA_CHARS:
            raise InvalidField(
                f"metadata.{name} has {len(value)} characters: give at most {MAX_METADATA_CHARS}",
                param=f"metadata.{name}",
            )


def prompt_param(request: GenerateRequest) -> str:
    """What the client calls its prompt."""
    return _param(request, "prompt" if request.messages is None else "messages")


def _param(request: GenerateRequest, name: str) -> str:
    return request.params.get(name, name)


def sampling_params(request: GenerateRequest, info: EngineInfo) -> SamplingParams:
    """The request's values over the model's defaults over ours, each checked. `max_tokens` is
    not yet cut to what fits: `fit` does that when the prompt's length is known."""
    max_tokens, min_tokens = _token_bounds(request, info)
    _check_stops(request.stop, _param(request, "stop"))
    _check_ids(request.stop_token_ids, "stop_token_ids", info.vocab_size)
    if len(request.stop_token_ids) > MAX_STOP_TOKEN_IDS:
        raise InvalidField(
            f"stop_token_ids has {len(request.stop_token_ids)} ids: at most {MAX_STOP_TOKEN_IDS}",
            param="stop_token_ids",
        )
    numbers: dict[str, Any] = {name: _number(name, request, info) for name in _RANGES}
    return SamplingParams(
        **numbers,
        top_k=_top_k(request, info),
        seed=_seed(request.seed),
        max_tokens=max_tokens,
        min_tokens=min_tokens,
        stop_token_ids=tuple(request.stop_token_ids),
        ignore_eos=request.ignore_eos,
    )


def fit(
    request: GenerateRequest, sampling: SamplingParams, num_prompt_tokens: int, info: EngineInfo
) -> SamplingParams:
    """Cuts `max_tokens` to the room the prompt leaves."""
    limit, param = info.max_model_len, prompt_param(request)
    if num_prompt_tokens == 0:
        raise InvalidField(f"{param} has no tokens: give some text", param=param)
    room = limit - num_prompt_tokens
    if room <= 0:
        raise PromptTooLong(
            f"This model's maximum context length is {limit} tokens, prompt and answer together, "
            f"and your prompt has {num_prompt_tokens}: shorten it to at most {limit - 1} tokens, "
            "or have the server started with a larger --session-len if the model allows it.",
            param=param,
            num_tokens=num_prompt_tokens,
        )
    if sampling.min_tokens > room:
        name = _param(request, "min_tokens")
        raise InvalidField(
            f"{name} is {sampling.min_tokens}, but only {room} tokens fit after a prompt of "
            f"{num_prompt_tokens} in a context of {limit}: lower it or shorten the prompt",
            param=name,
        )
    if sampling.max_tokens <= room:
        return sampling
    return msgspec.structs.replace(sampling, max_tokens=room)


def check_turn(request: GenerateRequest) -> None:
    """When it is to run."""
    if not 0 <= request.priority <= MAX_PRIORITY:
        raise InvalidField(
            f"priority is {request.priority}: it must be from 0 to {MAX_PRIORITY}; higher waits "
            "for lower",
            param="priority",
        )
    deadline_s = request.deadline_s
    if deadline_s is not None and not 0 < deadline_s <= MAX_DEADLINE_S:
        raise InvalidField(
            f"deadline_s is {deadline_s}: it must be above 0 and at most {MAX_DEADLINE_S}; leave "
            "it out for none",
            param="deadline_s",
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
    _check_stops(stop or ())
    if max_tokens is None:
        max_tokens = sampling.max_tokens
    asked = GenerateRequest(
        temperature=sampling.temperature if temperature is None else temperature,
        max_tokens=max_tokens,
        min_tokens=min(sampling.min_tokens, max_tokens),
    )
    max_tokens, min_tokens = _token_bounds(asked, info)
    return msgspec.structs.replace(
        sampling,
        temperature=_number("temperature", asked, info),
        max_tokens=min(max_tokens, info.max_model_len - num_prompt_tokens),
        min_tokens=min_tokens,
    )


def _token_bounds(request: GenerateRequest, info: EngineInfo) -> tuple[int, int]:
    max_tokens, min_tokens = request.max_tokens, request.min_tokens or 0
    max_name, min_name = _param(request, "max_tokens"), _param(request, "min_tokens")
    if max_tokens is not None and max_tokens < 1:
        raise InvalidField(
            f"{max_name} is {max_tokens}: it must be at least 1; leave it out for the default",
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
            param = _param(request, name)
            raise InvalidField(f"{param} is {given}: it must be {words}", param=param)
        return float(given)
    default = info.generation_defaults.get(name)
    if default is not None and least <= default <= greatest:
        return float(default)
    return float(getattr(_DEFAULTS, name))


_DEFAULTS = SamplingParams()


def _top_k(request: GenerateRequest, info: EngineInfo) -> int:
    """0 is off; so is the -1 that clients of other servers send."""
    given = request.top_k
    if given is None:
        default = int(info.generation_defaults.get("top_k", _DEFAULTS.top_k))
        return min(max(default, 0), info.vocab_size)
    if not -1 <= given <= info.vocab_size:
        param = _param(request, "top_k")
        raise InvalidField(
            f"{param} is {given}: it must be from 1 to {info.vocab_size} (the vocabulary), or 0 "
            "or -1 for off",
            param=param,
        )
    return max(given, 0)


def _seed(given: int | None) -> int:
    if given is None:
        return random.getrandbits(63)
    if not -_INT64 <= given < _INT64:
        raise InvalidField(
            f"seed must be a 64-bit integer, from {-_INT64} to {_INT64 - 1}", param="seed"
        )
    return given


def _check_stops(stops: Sequence[str], param: str = "stop") -> None:
    if len(stops) > MAX_STOPS:
        raise InvalidField(f"{param} has {len(stops)} strings: at most {MAX_STOPS}", param=param)
    for index, stop in enumerate(stops):
        if not 1 <= len(stop) <= MAX_STOP_CHARS:
            raise InvalidField(
                f"{param}[{index}] has {len(stop)} characters: it must have 1 to {MAX_STOP_CHARS}",
                param=f"{param}[{index}]",
            )


def _check_ids(ids: list[int] | tuple[int, ...], param: str, vocab_size: int) -> None:
    if not ids or (min(ids) >= 0 and max(ids) < vocab_size):
        return
    index, id = next((i, id) for i, id in enumerate(ids) if not 0 <= id < vocab_size)
    raise InvalidField(
        f"{param}[{index}] is {id}: token ids go from 0 to {vocab_size - 1}",
        param=f"{param}[{index}]",
    )
