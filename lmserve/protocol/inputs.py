"""Prompts as clients send several: texts, or token ids."""

from __future__ import annotations

from collections.abc import Sized
from typing import Any

from lmserve.errors import InvalidField
from lmserve.types import GenerateRequest

MAX_INPUTS = 4096  # more than any route takes

Inputs = str | list[str | int | list[int]]  # one text, texts, one prompt in ids, several


def requests_of(inputs: Inputs, param: str, **common: Any) -> list[GenerateRequest]:
    """One request a prompt, in order; each names its prompt as the client does. `common`: fields
    of all."""
    params = common.pop("params", {})
    texts, prompts_ids = texts_or_ids(inputs, param)
    check_num(texts or prompts_ids, param)
    one = isinstance(inputs, str) or isinstance(inputs[0], int)

    def named(index: int) -> dict[str, str]:
        name = param if one else f"{param}[{index}]"
        return params if name == "prompt" else {**params, "prompt": name}  # it is called so anyway

    return [
        GenerateRequest(text=text, params=named(index), **common)
        for index, text in enumerate(texts)
    ] + [
        GenerateRequest(token_ids=ids, params=named(index), **common)
        for index, ids in enumerate(prompts_ids)
    ]


def check_num(inputs: Sized, param: str) -> None:
    """How many a route takes is `lmserve.service.limits`' to say. What none does is refused before
    each is made a request, which would take seconds."""
    if len(inputs) > MAX_INPUTS:
        raise InvalidField(
            f"{param} has {len(inputs)} items, more than {MAX_INPUTS}: send several calls",
            param=param,
        )


def texts_or_ids(inputs: Inputs, param: str) -> tuple[list[str], list[list[int]]]:
    """Texts, or prompts of token ids: one of the two is empty."""
    if isinstance(inputs, str):
        return [inputs], []
    if not inputs:
        raise InvalidField(f"{param} is empty: give at least one text", param=param)
    ids = [item for item in inputs if isinstance(item, int)]
    texts = [item for item in inputs if isinstance(item, str)]
    lists = [item for item in inputs if isinstance(item, list)]
    if len(inputs) not in (len(ids), len(texts), len(lists)):
        raise InvalidField(
            f"{param} mixes texts and token ids: send texts, or token ids, or lists of those",
            param=param,
        )
    return texts, [ids] if ids else lists
