"""What the fake engine says beside tokens: figures that look likely, a function of token ids."""

from __future__ import annotations

import struct

from lmserve.bridge import assets
from lmserve.messages import TokenLogprob

HIDDEN_SIZE = 64  # numbers in an embedding
BEST = -0.25  # the log probability of a token that was the likeliest
SECOND = -2.5  # of the next; each that follows is less likely by STEP
STEP = 0.25
FAR = -9.75  # of one that is not among the likeliest
RARE = 7  # such is each token whose id is a multiple of this


def logprob_of(token_id: int, num_top: int) -> TokenLogprob:
    """One in seven tokens is not among the likeliest; the others are the likeliest."""
    first = int(token_id % RARE == 0)
    top_ids = [(token_id + first + i) % assets.VOCAB_SIZE for i in range(num_top)]
    top = [BEST if i == 0 else SECOND - STEP * (i - 1) for i in range(num_top)]
    return TokenLogprob(token_id, FAR if first else BEST, top_ids, top)


def logprobs_of(token_ids: list[int], num_top: int) -> list[TokenLogprob]:
    return [logprob_of(token_id, num_top) for token_id in token_ids]


def embedding_of(token_ids: list[int], pooling: str) -> bytes:
    """The mean of the tokens' own vectors, or the last's."""
    used = token_ids if pooling == "mean" else token_ids[-1:]
    sums = [sum((token_id * (i + 3)) % 101 - 50 for token_id in used) for i in range(HIDDEN_SIZE)]
    return struct.pack(f"<{HIDDEN_SIZE}f", *(each / len(used) / 50 for each in sums))
