"""Texts in tokens, for clients that count before they ask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lmserve.service.catalog import Model
from lmserve.service.prompt import ModelText, is_short
from lmserve.types import GenerateRequest


def are_short(requests: Sequence[GenerateRequest], max_chars: int) -> bool:
    """Whether all their texts together are about so short."""
    least = max_chars // (len(requests) or 1)
    return all(
        len(request.token_ids or ()) <= least and is_short(request, least) for request in requests
    )


def encode_all(
    text: ModelText, requests: Sequence[GenerateRequest], add_bos: bool
) -> list[list[int]]:
    """Each prompt as it would be run; without `add_bos`, less the model's BOS token."""
    bos = text.tokenizer.bos_token_id
    encoded = [text.token_ids(request) for request in requests]
    if add_bos or bos is None:
        return encoded
    return [ids[1:] if ids[:1] == [bos] else ids for ids in encoded]


@dataclass(frozen=True, slots=True)
class Form:
    """How a prompt is to be shown."""

    add_special: bool | None = None  # around the text; None: as it would be run
    add_generation_prompt: bool = True
    spelled: bool = False  # its tokens as the vocabulary has them, too


@dataclass(frozen=True, slots=True)
class Rendered:
    """A prompt, both ways."""

    model: Model
    text: str
    token_ids: list[int]
    spelled: list[str] | None


def render(model: Model, form: Form, request: GenerateRequest, text: ModelText) -> Rendered:
    if request.token_ids is not None:
        token_ids = request.token_ids
        prompt = text.tokenizer.decode(token_ids, skip_special=False)
    else:
        prompt = text.rendered(request, add_generation_prompt=form.add_generation_prompt)
        add_special = request.text is not None if form.add_special is None else form.add_special
        token_ids = text.tokenizer.encode(prompt, add_special=add_special)
        if form.add_generation_prompt:
            end = text.speech.prompt_end(request, token_ids)
            token_ids += end
            prompt += text.tokenizer.decode(end, skip_special=False)
    spelled = text.tokenizer.spell(token_ids) if form.spelled else None
    return Rendered(model, prompt, token_ids, spelled)
