"""Texts in tokens, for clients that count before they ask."""

from __future__ import annotations

from collections.abc import Sequence

from lmserve.service.prompt import ModelText, is_short
from lmserve.types import GenerateRequest


def are_short(requests: Sequence[GenerateRequest], max_chars: int) -> bool:
    """Whether all their texts together are about so short."""
    least = max_chars // (len(requests) or 1)
    return all(is_short(request, least) for request in requests)


def encode_all(
    text: ModelText, requests: Sequence[GenerateRequest], add_bos: bool
) -> list[list[int]]:
    """Each prompt as it would be run; without `add_bos`, less the model's BOS token."""
    bos = text.tokenizer.bos_token_id
    encoded = [text.token_ids(request) for request in requests]
    if add_bos or bos is None:
        return encoded
    return [ids[1:] if ids[:1] == [bos] else ids for ids in encoded]
