"""What a request is told of its prompt beside the answer: log probabilities, a pooled hidden
state, how far it is. Each piece once, however the prompt is cut into chunks, preempted and
resumed; what was told already may come from the cache, what was not is run."""

from __future__ import annotations

import numpy as np

from lmserve.engine.plan import PromptShare, Row, StepResult
from lmserve.messages import SequenceOutput
from lmserve.sampling import SamplingParams


class PromptOutputs:
    """Made once a request, where something is wanted."""

    __slots__ = ("_next_pooled", "_next_scored", "_num_pooled", "_num_told", "_num_tokens",
                 "_num_top", "_sum", "_tells_progress")  # fmt: skip

    def __init__(self, sampling: SamplingParams, num_tokens: int):
        self._num_tokens = num_tokens
        self._num_top = sampling.prompt_logprobs or 0
        # the next token whose log probability is told; the very first has none
        first = max(1, sampling.prompt_logprobs_start)
        scores = sampling.prompt_logprobs is not None
        self._next_scored = min(first, num_tokens) if scores else num_tokens
        # the next position whose hidden state is summed, of so many
        self._num_pooled = {None: 0, "last": 1, "mean": num_tokens}[sampling.pooling]
        self._next_pooled = num_tokens - self._num_pooled
        self._sum: np.ndarray | None = None
        self._tells_progress = sampling.tell_progress
        self._num_told = 0  # tokens of the prompt that are said to be done

    @staticmethod
    def of(sampling: SamplingParams, num_tokens: int) -> PromptOutputs | None:
        wanted = sampling.prompt_logprobs is not None or sampling.pooling is not None
        return PromptOutputs(sampling, num_tokens) if wanted or sampling.tell_progress else None

    @property
    def num_matchable(self) -> int:
        """First tokens that need not be run. What is told of a token is known at the one before
        it."""
        scored = self._next_scored
        return min(scored if scored == self._num_tokens else scored - 1, self._next_pooled)

    def share(self, start: int, end: int) -> PromptShare | None:
        """What a row of these positions gives."""
        scored = range(max(start + 1, self._next_scored), min(end + 1, self._num_tokens))
        pooled = range(max(start, self._next_pooled), min(end, self._num_tokens))
        return PromptShare(scored, self._num_top, pooled) if scored or pooled else None

    def tell(self, output: SequenceOutput, row: Row, result: StepResult) -> bool:
        """A row has run: adds what it gave. Says whether that is anything."""
        told = False
        if row.prompt is not None and row.prompt.scored:
            output.prompt_logprobs = result.prompt_logprobs[row.rid]
            self._next_scored = row.prompt.scored.stop
            told = True
        if row.prompt is not None and row.prompt.pooled:
            told |= self._pool(output, row.prompt.pooled, result.pooled[row.rid])
        num_done = min(row.context_len, self._num_tokens)
        if self._tells_progress and num_done > self._num_told:
            output.num_prompt_run = self._num_told = num_done
            told = True
        return told

    def _pool(self, output: SequenceOutput, pooled: range, hidden: np.ndarray) -> bool:
        self._sum = hidden if self._sum is None else self._sum + hidden
        self._next_pooled = pooled.stop
        if pooled.stop < self._num_tokens:
            return False
        output.embedding = (self._sum / self._num_pooled).astype("<f4").tobytes()
        return True
