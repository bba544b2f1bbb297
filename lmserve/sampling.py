"""How the next token is chosen. Frozen; crosses the bridge as it is."""

from __future__ import annotations

from typing import Literal

import msgspec

GREEDY_BELOW = 1e-5  # a temperature so low leaves one token, and divides by next to nothing


class Grammar(msgspec.Struct, frozen=True, array_like=True):
    """What the answer must be: each token chosen is one that a whole of it may go on with."""

    source: str  # as llguidance reads it: Lark, or its JSON
    after: tuple[int, ...] = ()  # it begins after these tokens (the end of the reasoning)


class Thinking(msgspec.Struct, frozen=True, array_like=True):
    """How long the reasoning may be. Where it is not over by then, its end is forced."""

    max_tokens: int
    end_ids: tuple[int, ...]  # the tokens that end it
    start_ids: tuple[int, ...] = ()  # those that begin it; (): it has begun in the prompt


class SamplingParams(msgspec.Struct, frozen=True, array_like=True):
    """Sampling settings of one request, already validated by the service.

    Ranges (the validator in `lmserve.service.limits` owns them): temperature 0–2 (0 is
    greedy), top_p (0, 1], top_k 0 or -1 for off, min_p [0, 1], repetition_penalty [0.01, 2],
    presence and frequency penalty [-2, 2].
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0  # over prompt and output, as transformers and vLLM do
    presence_penalty: float = 0.0  # over output only, as OpenAI documents it
    frequency_penalty: float = 0.0  # over output only
    seed: int = 0  # the service draws one where the client gave none
    max_tokens: int = 16  # always set: the service clamps it to what fits; 0: nothing is chosen
    min_tokens: int = 0  # no end or stop token is chosen before this many
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logit_bias: tuple[tuple[int, float], ...] = ()  # token id, what is added to its logit
    allowed_token_ids: tuple[int, ...] = ()  # (): all
    bad_words: tuple[tuple[int, ...], ...] = ()  # token sequences that are never completed
    grammar: Grammar | None = None
    thinking: Thinking | None = None
    # log probabilities are those of the model's own logits, before all of the above
    logprobs: int | None = None  # of each chosen token, with so many of the likeliest
    prompt_logprobs: int | None = None  # the same of the prompt's tokens
    prompt_logprobs_start: int = 0  # the first token of it that they are wanted of
    pooling: Literal["mean", "last"] | None = None  # the answer is the prompt's hidden state
    tell_progress: bool = False  # of the prompt, as it is run

    @property
    def greedy(self) -> bool:
        return self.temperature < GREEDY_BELOW

    @property
    def penalised(self) -> bool:
        return (
            self.repetition_penalty != 1.0
            or self.presence_penalty != 0.0
            or self.frequency_penalty != 0.0
        )
