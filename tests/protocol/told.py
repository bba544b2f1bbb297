"""Where answers come from in tests of how they are told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from lmserve.messages import TokenLogprob
from lmserve.types import Usage


@dataclass
class Time:
    queue_s: float | None = 0.5
    prompt_s: float = 2.0
    answer_s: float = 1.0
    num_prompt_run: int = 4
    num_tokens: int = 3


@dataclass
class Told:
    """As a generation."""

    usage: Usage = Usage(5, 3, 1)
    timings: Time = field(default_factory=Time)
    prompt_ids: Sequence[int] = (104, 105)
    prompt_logprobs: Sequence[TokenLogprob] = ()
    unshown_ids: list[int] = field(default_factory=list)
    end_id: int | None = None
    end_logprob: TokenLogprob | None = None


class Bytes:
    """A vocabulary in which each token is the byte of its number; those from 256 on are special."""

    special_ids = frozenset(range(256, 512))

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([token_id]) if token_id < 256 else b"<%d>" % token_id

    def decode(self, token_ids: Sequence[int], *, skip_special: bool) -> str:
        shown = [id for id in token_ids if not (skip_special and id in self.special_ids)]
        return b"".join(map(self.token_bytes, shown)).decode(errors="replace")
