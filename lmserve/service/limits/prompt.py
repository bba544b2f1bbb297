"""Of the prompt: what it may be, and how long."""

from __future__ import annotations

import msgspec

from lmserve.errors import InvalidField, PromptTooLong
from lmserve.messages import EngineInfo
from lmserve.sampling import SamplingParams
from lmserve.service.limits.field import check_ids, name_of, prompt_param
from lmserve.types import GenerateRequest

MAX_TEXTS = 1024  # tokenised in one call


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
        _room(len(request.token_ids), 0, prompt_param(request), info)  # before each is looked at
        check_ids(request.token_ids, prompt_param(request), info.vocab_size)
    num_messages, param = len(request.messages or ()), prompt_param(request)
    if num_messages > info.max_model_len:  # each is a token at least
        raise PromptTooLong(
            f"{param} has {num_messages} messages, more than the context of {info.max_model_len} "
            "tokens can hold: send fewer",
            param=param,
            num_tokens=num_messages,
        )


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


def fit(
    request: GenerateRequest, sampling: SamplingParams, num_prompt_tokens: int, info: EngineInfo
) -> SamplingParams:
    """Cuts `max_tokens` to the room the prompt leaves."""
    param = prompt_param(request)
    if num_prompt_tokens == 0:
        raise InvalidField(f"{param} has no tokens: give some text", param=param)
    start = sampling.prompt_logprobs_start
    if start > num_prompt_tokens:
        name = name_of(request, "prompt_logprobs_start")
        raise InvalidField(
            f"{name} is {start}, but the prompt has {num_prompt_tokens} tokens: lower it",
            param=name,
        )
    room = _room(num_prompt_tokens, 1 if sampling.max_tokens else 0, param, info)
    if sampling.min_tokens > room:
        name = name_of(request, "min_tokens")
        raise InvalidField(
            f"{name} is {sampling.min_tokens}, but only {room} tokens fit after a prompt of "
            f"{num_prompt_tokens} in a context of {info.max_model_len}: lower it or shorten the "
            "prompt",
            param=name,
        )
    if sampling.max_tokens <= room:
        return sampling
    return msgspec.structs.replace(sampling, max_tokens=room)


def _room(num_prompt_tokens: int, least: int, param: str, info: EngineInfo) -> int:
    """Tokens that the prompt leaves for the answer. Raises PromptTooLong for fewer than `least`."""
    limit = info.max_model_len
    room = limit - num_prompt_tokens
    if room >= least:
        return room
    raise PromptTooLong(
        f"This model's maximum context length is {limit} tokens, prompt and answer together, "
        f"and your prompt has {num_prompt_tokens}: shorten it to at most {limit - least} tokens, "
        "or have the server started with a larger --session-len if the model allows it.",
        param=param,
        num_tokens=num_prompt_tokens,
    )
