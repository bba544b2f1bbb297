"""How the answers to a script's prompts are chosen."""

from __future__ import annotations

from typing import Any

import msgspec

from lmserve.errors import InvalidField


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True):
    """What a script asks for, in the words of the server's requests. None: the model's own
    default, else the server's. (What the engine is told is `lmserve.sampling.SamplingParams`.)
    """

    temperature: float | None = None  # 0 is greedy
    top_p: float | None = None
    top_k: int | None = None  # 0 is all
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None  # None: another each time
    max_tokens: int | None = None  # None: as many as fit
    min_tokens: int | None = None
    stop: str | tuple[str, ...] = ()  # not shown where it ends the answer
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logit_bias: dict[int, float] = {}
    allowed_token_ids: tuple[int, ...] = ()  # (): all
    bad_words: tuple[str, ...] = ()
    logprobs: int | None = None  # of each token, with so many of the likeliest
    prompt_logprobs: int | None = None  # the same of the prompt's tokens
    skip_special_tokens: bool = True
    detokenize: bool = True  # False: answers have no text, which takes its time


def request_fields(sampling: SamplingParams) -> dict[str, Any]:
    """As `GenerateRequest` has them, and `detokenize`. Raises InvalidField where a type is wrong:
    a script's values were decoded by nobody."""
    try:
        checked = msgspec.convert(msgspec.structs.asdict(sampling), SamplingParams)
    except msgspec.ValidationError as error:
        problem, _, place = str(error).partition(" - at `$.")
        name = place.rstrip("`")
        raise InvalidField(f"{name}: {problem[0].lower()}{problem[1:]}", param=name) from None
    stop = (checked.stop,) if isinstance(checked.stop, str) else checked.stop
    if stop and not checked.detokenize:
        raise InvalidField(
            "stop is met in an answer's text, which detokenize=False leaves out: leave one of them "
            "out, or give stop_token_ids",
            param="stop",
        )
    return msgspec.structs.asdict(checked) | {"stop": stop}
